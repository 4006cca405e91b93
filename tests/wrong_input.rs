//! Wrong input ends with a message that says where, what was expected and what was found, a hint, and exit code 2.

use std::sync::Arc;

use crate::tiny::{Workspace, stderr};

/// Runs, expects exit code 2, a hint on its own line and these words; nothing of the stage may be left.
fn refuses(workspace: &Workspace, arguments: &[&str], stage: &str, words: &[&str]) {
    let output = workspace.run(arguments).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let error = said.lines().find(|l| l.starts_with("error: ")).unwrap_or_else(|| panic!("no error line in: {said}"));
    let rest = &said[said.find(error).unwrap()..];
    assert!(words.iter().all(|w| rest.contains(w)), "{words:?} not in: {rest}");
    assert!(rest.lines().any(|l| l.starts_with("hint: ")), "no hint in: {rest}");
    assert!(!rest.contains("panicked"), "{rest}");
    assert!(!workspace.path("checkpoints/tiny").join(stage).exists(), "{stage} was written");
}

#[test]
fn unknown_keys_in_any_toml() {
    let workspace = Workspace::new();
    for kind in ["import", "simulate", "data", "reward", "pairs", "dpo", "evaluate", "export"] {
        let file = format!("configs/{kind}.toml");
        let whole = fs_err::read_to_string(workspace.path(&file)).unwrap();
        fs_err::write(workspace.path(&file), format!("surprise = 1\n{whole}")).unwrap();
        refuses(&workspace, &[], "import", &["surprise", &file]);
        fs_err::write(workspace.path(&file), whole).unwrap();
    }
    workspace.edit("configs/reward.toml", "rank = 2", "rank = 2\nrnak = 3");
    refuses(&workspace, &[], "import", &["rnak", "configs/reward.toml"]);
    workspace.edit("configs/reward.toml", "\nrnak = 3", "");
    workspace.edit("pipelines/tiny.toml", "seed = 3", "seed = 3\nsede = 4");
    refuses(&workspace, &[], "import", &["sede", "tiny.toml"]);
    workspace.edit("pipelines/tiny.toml", "\nsede = 4", "");
    workspace.edit("card.toml", "name = ", "nmae = 1\nname = ");
    refuses(&workspace, &[], "data", &["nmae", "card.toml"]);
    workspace.edit("card.toml", "nmae = 1\n", "");
    workspace.edit("prompts.toml", "train = ", "extra = []\ntrain = ");
    refuses(&workspace, &["--force", "simulate"], "reward", &["extra", "prompts.toml"]);
}

#[test]
fn settings_that_reach_nothing() {
    let workspace = Workspace::new();
    refuses(&workspace, &["--set", "reward.epochs=3"], "import", &["epochs"]);
    refuses(&workspace, &["--set", "rewrad.max_epochs=3"], "import", &["rewrad"]);
    refuses(&workspace, &["--set", "reward.lroa.rank=3"], "import", &["lroa"]);
    refuses(&workspace, &["--set", "nonsense"], "import", &["nonsense"]);
    refuses(&workspace, &["--until", "rewrad"], "import", &["rewrad"]);
    refuses(&workspace, &["--device", "cuda:99"], "import", &["cuda:99"]);
}

#[test]
fn a_base_without_weights_or_with_damaged_ones() {
    let workspace = Workspace::new();
    let weights = workspace.path("model/model.safetensors");
    let whole = fs_err::read(&weights).unwrap();
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs_err::write(&weights, &whole[..length]).unwrap();
        refuses(&workspace, &[], "import", &["model.safetensors", "expected"]);
    }
    fs_err::remove_file(&weights).unwrap();
    refuses(&workspace, &[], "import", &["model", "model.safetensors.index.json", "no weights"]);
    fs_err::write(&weights, &whole).unwrap();
    fs_err::remove_file(workspace.path("model/tokenizer.json")).unwrap();
    refuses(&workspace, &[], "import", &["tokenizer.json"]);
}

#[test]
fn a_tokenizer_beyond_the_vocabulary() {
    let workspace = Workspace::new();
    // The same weights, with fewer rows of the embedding than the tokenizer has tokens.
    let mut tensors = lm::read_tensors(&workspace.path("model/model.safetensors"), tch::Device::Cpu, None).unwrap();
    let embed = tensors.by_name.remove("model.embed_tokens.weight").unwrap();
    let rows = embed.size()[0];
    tensors.by_name.insert("model.embed_tokens.weight".into(), embed.narrow(0, 0, rows - 5));
    let all: Vec<_> = tensors.by_name.into_iter().collect();
    lm::write_tensors(&workspace.path("model/model.safetensors"), &all, None).unwrap();
    workspace.edit("model/config.json", &format!("\"vocab_size\": {rows}"), &format!("\"vocab_size\": {}", rows - 5));
    let (limit, largest) = (format!("{}", rows - 5), format!("{}", rows - 1));
    refuses(&workspace, &[], "import", &["vocab_size", &limit, &largest]);
}

#[test]
fn a_missing_column_and_a_null_answer() {
    let workspace = Workspace::new();
    workspace.run(&["--until", "import"]).assert().success();
    let card = "name = 'x'\nsource = 'x'\nlicence = 'x'\n[layout]\nkind = 'pairs'\nuser_id = 'user_id'\n\
                prompt = 'prompt'\nchosen = 'chosen'\nrejected = 'rejected'\n";
    fs_err::write(workspace.path("card.toml"), card).unwrap();
    workspace.edit(
        "configs/data.toml",
        "card = \"../card.toml\"",
        "card = \"../card.toml\"\npath = \"../votes.parquet\"",
    );
    workspace.edit("configs/data.toml", "{ by = \"column\" }", "{ by = \"prompt\", dev = 0.1, test = 0.2 }");

    let text = |values: &[&str]| data::Column::Text(values.iter().map(|v| (*v).to_owned()).collect());
    let columns = vec![("user_id", text(&["u"])), ("prompt", text(&["p"])), ("rejected", text(&["b"]))];
    data::write_table(&workspace.path("votes.parquet"), &columns).unwrap();
    refuses(
        &workspace,
        &["--until", "data"],
        "data",
        &["votes.parquet", "a column `chosen`", "user_id, prompt, rejected"],
    );

    write_with_null(&workspace.path("votes.parquet"));
    refuses(&workspace, &["--until", "data"], "data", &["votes.parquet, row 2, column `chosen`", "a value", "null"]);

    let whole = fs_err::read(workspace.path("votes.parquet")).unwrap();
    fs_err::write(workspace.path("votes.parquet"), &whole[..whole.len() - 9]).unwrap();
    refuses(&workspace, &["--until", "data"], "data", &["votes.parquet", "a whole file of its kind"]);
}

fn write_with_null(path: &std::path::Path) {
    use arrow::array::{ArrayRef, RecordBatch, StringArray};
    let column = |v: [Option<&str>; 2]| Arc::new(StringArray::from(v.to_vec())) as ArrayRef;
    let batch = RecordBatch::try_from_iter(vec![
        ("user_id", column([Some("u"), Some("u")])),
        ("prompt", column([Some("p"), Some("p")])),
        ("chosen", column([Some("a"), None])),
        ("rejected", column([Some("b"), Some("b")])),
    ])
    .unwrap();
    let file = fs_err::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

//! The stage `pairs`, whole program: from votes, and from samples ranked with caution.

use serde_json::Value;

use crate::tiny::Workspace;

#[test]
fn pairs_can_be_ranked_with_caution() {
    let workspace = Workspace::new();
    let pairs = |caution: Option<&str>| -> (Vec<u8>, Value) {
        let given = caution.map(|c| format!("pairs.caution={c}"));
        let mut arguments = vec!["--until", "pairs"];
        arguments.extend(given.iter().flat_map(|given| ["--set", given]));
        workspace.run(&arguments).assert().success();
        let stage = workspace.path("checkpoints/tiny/pairs");
        let manifest: Value = run::read_json(&stage.join("manifest.json")).unwrap();
        (fs_err::read(stage.join("pairs.parquet")).unwrap(), manifest["summary"].clone())
    };
    let (plain, said) = pairs(None);
    assert!(said.get("radius").is_none());
    let (none, said) = pairs(Some("0.0"));
    assert!(none == plain && said.get("radius").is_none(), "{said}");
    let (careful, said) = pairs(Some("30000.0"));
    assert!(careful != plain && said["radius"].as_f64().unwrap() > 0.0, "{said}");
    let wrong = workspace.run(&["--until", "pairs", "--set", "pairs.caution=-1.0"]).assert().code(2);
    assert!(String::from_utf8_lossy(&wrong.get_output().stderr).contains("`caution`"));
    let short = workspace.run(&["--until", "pairs", "--set", "pairs.max_row_tokens=9"]).assert().code(2);
    let said = String::from_utf8_lossy(&short.get_output().stderr).into_owned();
    assert!(
        said.contains("expected at most 9 tokens, found") && said.contains("hint: raise `max_row_tokens`"),
        "{said}"
    );
}

#[test]
fn pairs_can_come_from_votes() {
    let workspace = Workspace::new();
    fs_err::write(workspace.path("configs/pairs.toml"), "from = \"votes\"\n").unwrap();
    workspace.run(&["--until", "dpo"]).assert().success();
    let data: Value = run::read_json(&workspace.path("checkpoints/tiny/data/report.json")).unwrap();
    let pairs: Value = run::read_json(&workspace.path("checkpoints/tiny/pairs/manifest.json")).unwrap();
    let made = pairs["summary"]["pairs"].as_u64().unwrap();
    assert!(made > 0 && made <= data["splits"]["train"].as_u64().unwrap());
}

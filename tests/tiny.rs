//! A random Llama of a few thousand numbers, a tokenizer whose words are those that style features count, and a
//! workspace with pipelines and configs around them.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use rand::{Rng, SeedableRng};
use tch::Tensor;

/// Words that the features count, each one token.
const WORDS: &str = "you your yours yourself i me my we us our can could may might must would should will \
                     it its this that these those not no never nor cannot going doing being seeing really badly hardly";

/// Writes the tokenizer's files and the number of its tokens.
pub(crate) fn write_tokenizer(folder: &Path) -> usize {
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).to_vec();
    tokens.extend(WORDS.split_whitespace().map(|w| format!("Ġ{w}")));
    let mut characters: Vec<char> = ('a'..='z').collect();
    characters.extend("Ċ?.,'0123456789".chars());
    characters.push('Ġ');
    tokens.extend(characters.iter().map(ToString::to_string));
    let mut types = vec![1; tokens.len()];
    types[..3].fill(3);
    let vocabulary = text::Vocabulary {
        types,
        merges: vec![],
        pre: "smollm".into(),
        bos_id: Some(1),
        eos_id: 2,
        unk_id: Some(0),
        pad_id: Some(2),
        chat_template:
            "{% for m in messages %}{{ '<|im_start|>' + ('a' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] + '<|im_end|>' + '\n' }}\
                        {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>a\n' }}{% endif %}"
                .into(),
        context_length: 256,
        tokens,
    };
    vocabulary.write(folder).unwrap();
    vocabulary.tokens.len()
}

/// Writes a whole model folder.
pub(crate) fn write_model(folder: &Path) {
    write_model_with(folder, 5);
}

/// The same with weights of another seed.
pub(crate) fn write_model_with(folder: &Path, seed: u64) {
    fs_err::create_dir_all(folder).unwrap();
    let vocab = write_tokenizer(folder) as i64;
    let (e, m, kv) = (32, 48, 16);
    let config = serde_json::json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": vocab, "hidden_size": e, "intermediate_size": m, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2});
    run::write_json(&folder.join("config.json"), &config).unwrap();
    run::write_json(&folder.join("generation_config.json"), &serde_json::json!({"eos_token_id": 2})).unwrap();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut random = |shape: &[i64], scale: f32| {
        let count: i64 = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| rng.random_range(-scale..scale)).collect();
        Tensor::from_slice(&values).view(shape)
    };
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), random(&[vocab, e], 0.25))];
    for i in 0..4 {
        let mut push = |name: &str, tensor: Tensor| tensors.push((format!("model.layers.{i}.{name}.weight"), tensor));
        push("input_layernorm", random(&[e], 0.1) + 1.0);
        push("self_attn.q_proj", random(&[e, e], 0.3));
        push("self_attn.k_proj", random(&[kv, e], 0.3));
        push("self_attn.v_proj", random(&[kv, e], 0.3));
        push("self_attn.o_proj", random(&[e, e], 0.3));
        push("post_attention_layernorm", random(&[e], 0.1) + 1.0);
        push("mlp.gate_proj", random(&[m, e], 0.3));
        push("mlp.up_proj", random(&[m, e], 0.3));
        push("mlp.down_proj", random(&[e, m], 0.3));
    }
    tensors.push(("model.norm.weight".into(), random(&[e], 0.1) + 1.0));
    lm::write_tensors(&folder.join("model.safetensors"), &tensors, None).unwrap();
}

const OPTIMIZER: &str = "learning_rate = 1e-2\nschedule = \"linear\"\nwarmup_ratio = 0.1\nweight_decay = 0.0\n\
                         betas = [0.9, 0.999]\nepsilon = 1e-8\nmax_grad_norm = 1.0\n";
const LORA: &str = "rank = 2\nalpha = 4\ntargets = [\"q_proj\", \"v_proj\"]\nblocks = { last = 2 }\n";
const SAMPLING: &str = "samples_per_prompt = 4\nmax_new_tokens = 12\ntemperature = 1.0\nbatch_rows = 8\n";

/// A folder with a tiny model, `pipelines/tiny.toml` and all configs.
pub(crate) struct Workspace {
    folder: tempfile::TempDir,
}

impl Workspace {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write_model(&root.join("model"));
        let write = |path: &str, text: String| {
            let path = root.join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        };
        let list =
            |range: std::ops::Range<usize>| range.map(|i| format!("\"what is {i}?\"")).collect::<Vec<_>>().join(", ");
        write(
            "prompts.toml",
            format!("train = [{}]\ndev = [{}]\nheld_out = [{}]\n", list(0..8), list(8..11), list(11..15)),
        );
        let kinds = ["import", "simulate", "data", "reward", "pairs", "dpo", "evaluate", "export"];
        let stages = kinds.map(|k| format!("[[stage]]\nkind = \"{k}\"\ninclude = \"../configs/{k}.toml\"\n"));
        write("pipelines/tiny.toml", format!("name = \"tiny\"\nseed = 3\n{}", stages.concat()));
        write("configs/import.toml", "folder = \"../model\"\n".into());
        write(
            "configs/simulate.toml",
            format!(
                "prompts = \"../prompts.toml\"\nsystem = \"be brief\"\n\
                 features = [\"second-person\", \"modal\", \"pointing\", \"first-person\"]\n\
                 agreement = 0.8\ntie_width = 0.02\ngate = 0.25\n[sampling]\n{SAMPLING}\
                 [votes_per_user]\ntrain = 30\ndev = 6\ntest = 10\n\
                 [raters]\nann = [1, -1, 1, -1]\n\"Bo/../b\" = [1, 1, -1, -1]\n"
            ),
        );
        fs_err::copy(repository().join("datasets/simulated/card.toml"), root.join("card.toml")).unwrap();
        write(
            "configs/data.toml",
            "card = \"../card.toml\"\n[selection]\nmin_votes = 5\nsplit = { by = \"column\" }\nstrict = false\n".into(),
        );
        write(
            "configs/reward.toml",
            format!(
                "variant = \"p-share-lora\"\npooling = \"mean\"\nhead_scale = 1.0\nbatch_votes = 8\n\
                 phases = [{{ factors = \"global\", epochs = 0.6 }}, {{ factors = \"personal\", epochs = 1.4 }}]\n\
                 token_budget = 40000\nmax_row_tokens = 200\nover_long = \"error\"\nmicro_batch_tokens = 300\nactivations = \"keep\"\nsave_every_steps = 2\n\
                 [lora]\n{LORA}[optimizer]\n{OPTIMIZER}"
            ),
        );
        write(
            "configs/pairs.toml",
            format!("from = \"reward\"\npairs_per_prompt = 2\nmax_row_tokens = 200\n[sampling]\n{SAMPLING}"),
        );
        write(
            "configs/dpo.toml",
            format!(
                "start = \"base\"\nover_long = \"error\"\nbeta = 0.1\nbatch_pairs = 2\nmax_epochs = 2\ntoken_budget_per_user = 20000\nmax_row_tokens = 200\n\
                 micro_batch_tokens = 200\nactivations = \"recompute\"\nsave_every_steps = 3\n[lora]\n{LORA}[optimizer]\n{OPTIMIZER}"
            ),
        );
        write(
            "configs/ppo.toml",
            format!(
                "start = \"base\"\nsteps = 7\nprompts_per_step = 3\nsamples_per_prompt = 2\nmax_new_tokens = 6\ntemperature = 1.0\n\
                 rollout_rows = 8\nepochs = 2\nminibatches = 2\nclip = 0.2\nwhiten_advantages = true\nguard = {{ on = {{ blocked = [\"nor\"], least_words = 0 }} }}\n\
                 max_row_tokens = 200\nover_long = \"error\"\nmicro_batch_tokens = 300\nactivations = \"recompute\"\nsave_every_steps = 2\n\
                 [method.ppo]\ngamma = 1.0\nlambda = 0.95\nvalue_clip = 0.2\nwhiten_rewards = true\nwarmup_steps = 1\n\
                 [method.ppo.optimizer]\n{OPTIMIZER}\
                 [kl]\nestimator = \"k3\"\ncontrol = {{ adaptive = {{ beta = 0.05, target = 1.0, horizon = 100.0 }} }}\n\
                 [reward]\ncalibration_samples_per_prompt = 2\nclip = 5.0\nmissing_end_penalty = 0.1\ncaution = 0.1\n\
                 [lora]\n{LORA}[optimizer]\n{OPTIMIZER}"
            ),
        );
        write(
            "configs/sft.toml",
            format!(
                "scope = \"global\"\nbatch_answers = 4\nmax_epochs = 4\ntoken_budget = 20000\nmax_row_tokens = 200\n\
                 over_long = \"error\"\nmicro_batch_tokens = 100\nactivations = \"recompute\"\nsave_every_steps = 3\n\
                 [lora]\n{LORA}[optimizer]\n{OPTIMIZER}"
            ),
        );
        write(
            "configs/evaluate.toml",
            format!("split = \"held_out\"\nkl_samples_per_prompt = 2\n[sampling]\n{SAMPLING}"),
        );
        write("configs/export.toml", "merged = [\"ann\"]\nprobe = \"what is 5?\"\ntolerance = 1e-3\n".into());
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `idiolect run pipelines/tiny.toml`, one thread, float32.
    pub(crate) fn run(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.arg("run").arg(self.path("pipelines/tiny.toml")).args(["--threads", "1", "--dtype", "float32"]);
        command.args(arguments);
        command
    }

    /// Puts the stage `sft` in front of `reward`.
    pub(crate) fn with_sft(self) -> Self {
        let reward = "[[stage]]\nkind = \"reward\"";
        let sft = "[[stage]]\nkind = \"sft\"\ninclude = \"../configs/sft.toml\"\n";
        self.edit("pipelines/tiny.toml", reward, &format!("{sft}{reward}"));
        self
    }

    /// Per-user policies of the stage `sft`, from which DPO starts.
    pub(crate) fn with_per_user_sft(self) -> Self {
        let own = self.with_sft();
        own.edit("configs/sft.toml", "scope = \"global\"", "scope = \"per-user\"");
        own.edit("configs/dpo.toml", "start = \"base\"", "start = \"sft\"");
        own
    }

    /// PPO in place of pairs and DPO.
    pub(crate) fn with_ppo(self) -> Self {
        let stage = |kind: &str| format!("[[stage]]\nkind = \"{kind}\"\ninclude = \"../configs/{kind}.toml\"\n");
        self.edit("pipelines/tiny.toml", &(stage("pairs") + &stage("dpo")), &stage("ppo"));
        self
    }

    /// Replaces a text in a file that must hold it.
    pub(crate) fn edit(&self, file: &str, from: &str, to: &str) {
        let text = fs_err::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(from), "{file} holds no `{from}`");
        fs_err::write(self.path(file), text.replace(from, to)).unwrap();
    }

    /// SHA-256 of every exported adapter's and every model's weights.
    pub(crate) fn hashes(&self) -> Vec<(String, String)> {
        let manifest: serde_json::Value = run::read_json(&self.path("checkpoints/tiny/export/manifest.json")).unwrap();
        let files = manifest["files"].as_object().unwrap();
        let weights = files.iter().filter(|(name, _)| name.ends_with(".safetensors"));
        let hashes: Vec<(String, String)> = weights.map(|(name, f)| (name.clone(), f["sha256"].to_string())).collect();
        assert_eq!(hashes.len(), 3, "two adapters and a merged model");
        hashes
    }
}

/// The program under test.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
    command.env_remove("IDIOLECT_ABORT_AFTER");
    command
}

/// The repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// What a command said on stderr.
pub(crate) fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

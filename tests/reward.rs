//! Reward models on the tiny model, through the library.

use data::{Split, Vote};
use eval::Evaluation;
use lm::{Activations, Pooling};
use reward::{
    EarlyStopping, Factors, FitReport, Kept, Lapse, Objective, Personal, Phase, RewardConfig, RewardModel, Role,
    Structure, Ties, Variant, Weighting,
};

use crate::bench::{Bench, count, lora, optimizer, share_of_rule, votes};
use crate::tiny::{write_model, write_model_with};

pub(crate) fn phase(factors: Factors, epochs: f64) -> Phase {
    Phase { factors, epochs, train: None }
}

pub(crate) fn reward_config(variant: Variant) -> RewardConfig {
    RewardConfig {
        variant,
        pooling: Pooling::Mean,
        head_scale: 1.0,
        lora: lora(),
        optimizer: optimizer(2e-2),
        batch_votes: count(8),
        phases: vec![phase(Factors::Global, 1.2), phase(Factors::Personal, 4.8)],
        token_budget: 1_000_000,
        structure: Structure::Lora,
        personal: Personal::Down,
        depth: None,
        features: None,
        personal_rate: 1.0,
        objective: Objective::default(),
        early_stopping: None,
        newcomer_epochs: 20.0,
        personal_factors: Kept::Memory,
        frozen_states: Kept::Memory,
        swap: false,
        max_row_tokens: 200,
        over_long: text::OverLong::Error,
        micro_batch_tokens: count(150),
        activations: Activations::Keep,
        save_every_steps: count(1000),
    }
}

pub(crate) fn users() -> Vec<String> {
    ["ann", "bob"].map(String::from).to_vec()
}

pub(crate) fn fit_on(
    bench: &Bench,
    config: &RewardConfig,
    votes: &[Vote],
    users: &[String],
    name: &str,
) -> (RewardModel, FitReport) {
    let mut run = bench.run("reward", name);
    reward::fit(config, &bench.lm, &bench.tokenizer, votes, users, &mut run).unwrap()
}

fn judge(bench: &Bench, model: &RewardModel, config: &RewardConfig, votes: &[Vote]) -> Evaluation {
    let scored = config.scored(Split::Test);
    let said = reward::predict(model, &bench.lm, &bench.tokenizer, votes, &scored, |_, _| ()).unwrap();
    eval::evaluate(&said, "test", &model.users, 3)
}

#[test]
fn personal_models_learn_opposite_tastes_and_a_global_one_cannot() {
    let bench = Bench::new();
    let accuracy = |config: &RewardConfig, name: &str| {
        let (model, report) = fit_on(&bench, config, &votes(), &users(), name);
        assert_eq!((report.votes, report.steps), (56, 42));
        let e = judge(&bench, &model, config, &votes());
        assert_eq!(e.users.iter().map(|u| u.votes).sum::<usize>(), 24);
        // A file gives back the same scores, and the same file.
        let path = bench.folder.path().join(format!("{name}.safetensors"));
        model.write(&path, &bench.lm).unwrap();
        let back = RewardModel::read(&path, &bench.lm).unwrap();
        assert_eq!(e, judge(&bench, &back, config, &votes()));
        let again = bench.folder.path().join("again.safetensors");
        back.write(&again, &bench.lm).unwrap();
        assert!(fs_err::read(&path).unwrap() == fs_err::read(&again).unwrap(), "{name}");
        e
    };
    // Every pair is judged both ways, once by each user: a model for all is right exactly half the time.
    let global = accuracy(&reward_config(Variant::LoraGlobal), "global");
    assert!((global.mean_accuracy - 0.5).abs() < 1e-9);
    let base = reward_config(Variant::PShareLora);
    let cases = [
        ("down", base.clone()),
        ("up", RewardConfig { personal: Personal::Up, ..base.clone() }),
        ("kernel", RewardConfig { structure: Structure::Kernel, ..base.clone() }),
        ("svd", RewardConfig { structure: Structure::Svd, ..base.clone() }),
        ("local", reward_config(Variant::LoraLocal)),
        ("share-rep", reward_config(Variant::ShareRep)),
    ];
    for (name, config) in cases {
        let e = accuracy(&RewardConfig { swap: true, ..config }, name);
        // The other's factors say the opposite.
        let swapped = e.swapped.unwrap();
        assert!(e.mean_accuracy > 0.85 && swapped < 0.35, "{name}: {} {swapped}", e.mean_accuracy);
    }
}

#[test]
fn neither_ending_nor_length_tells_which_response_of_a_vote_was_chosen() {
    let share = |split: Option<Split>, user: Option<&str>| {
        let of = |v: &Vote| split.is_none_or(|s| s == v.split) && user.is_none_or(|u| u == v.user_id);
        share_of_rule(votes().iter().filter(|v| of(v)).map(|v| [v.chosen.len(), v.rejected.len()]))
    };
    let endings = |v: &Vote| [v.chosen_finished, v.rejected_finished].map(|f| usize::from(f == Some(true)));
    for split in [Split::Train, Split::Test] {
        assert_eq!(share_of_rule(votes().iter().filter(|v| v.split == split).map(endings)), 0.5);
    }
    // Every pair is judged both ways.
    assert_eq!((share(Some(Split::Train), None), share(Some(Split::Test), None)), (0.5, 0.5));
    for user in users() {
        let (trained, tested) = (share(Some(Split::Train), Some(&user)), share(Some(Split::Test), Some(&user)));
        assert!((trained - 0.5).abs() < 0.05 && (tested - 0.5).abs() < 0.2, "{user}: {trained} {tested}");
    }
}

#[test]
fn rewards_tell_what_is_said_and_not_how_it_ends() {
    let bench = Bench::new();
    let (model, _) = fit_on(&bench, &reward_config(Variant::PShareLora), &votes(), &users(), "endings");
    let held_out: Vec<Vote> = votes().into_iter().filter(|v| v.split == Split::Test).collect();
    let ending = |finished: bool| if finished { text::Ending::Finished } else { text::Ending::Cut };
    // On other prompts, and also where the ending alone would point to the rejected response.
    for endings in [[true, true], [false, false], [true, false], [false, true]] {
        for (u, user) in users().iter().enumerate() {
            let own: Vec<&Vote> = held_out.iter().filter(|v| v.user_id == *user).collect();
            let row = |v: &Vote, response: &str, finished: bool| -> lm::TokenRow {
                bench.tokenizer.row(&v.prompt, response, ending(finished)).unwrap().into()
            };
            let sides = |v: &&Vote| [row(v, &v.chosen, endings[0]), row(v, &v.rejected, endings[1])];
            let rows: Vec<lm::TokenRow> = own.iter().flat_map(sides).collect();
            let all: Vec<usize> = (0..rows.len()).collect();
            let prefix = model.prefix(&bench.lm, rows, |_| ()).unwrap();
            let scores = model.score(&bench.lm, &prefix, &all, lm::UserIndex(u));
            let right = scores.chunks(2).filter(|both| both[0] > both[1]).count() as f64 / own.len() as f64;
            assert!(right > 0.85, "{user}, finished {endings:?}: {right}");
        }
    }
}

#[test]
fn a_vote_by_one_user_does_not_touch_the_others_personal_factors() {
    let bench = Bench::new();
    let users = ["ann", "bob", "cleo"].map(String::from);
    let config = RewardConfig { phases: vec![phase(Factors::Personal, 6.0)], ..reward_config(Variant::PShareLora) };
    let (model, _) = fit_on(&bench, &config, &votes(), &users, "one");
    // Cleo never votes: her factors are as they were drawn, whatever happened to the others'.
    let config = RewardConfig { optimizer: optimizer(1e-30), ..config };
    let (start, _) = fit_on(&bench, &config, &votes(), &users, "still");
    for (user, moved) in [(0, true), (1, true), (2, false)] {
        assert_eq!(apart(&model, user, &start, user) > 0.0, moved, "user {user}");
    }
}

/// The largest difference between two users' down-projections.
pub(crate) fn apart(a: &RewardModel, user: usize, b: &RewardModel, other: usize) -> f64 {
    let both = a.bank.of_user(lm::UserIndex(user)).into_iter().zip(b.bank.of_user(lm::UserIndex(other)));
    both.map(|(a, b)| (a.down - b.down).abs().max().double_value(&[])).fold(0.0, f64::max)
}

#[test]
fn a_phase_trains_what_it_names_and_nothing_else() {
    let bench = Bench::new();
    // Behind two epochs of everything, two of some roles; the same first two epochs alone are what they start from.
    let constant = lm::AdamWConfig { schedule: lm::Schedule::Constant, warmup_ratio: 0.0, ..optimizer(1e-2) };
    let whole = phase(Factors::Personal, 2.0);
    let base = RewardConfig { optimizer: constant, ..reward_config(Variant::PShareLora) };
    let (start, _) =
        fit_on(&bench, &RewardConfig { phases: vec![whole.clone()], ..base.clone() }, &votes(), &users(), "start");
    for (name, roles, activations) in [
        ("down", vec![Role::Down], Activations::Recompute),
        ("shared", vec![Role::Up, Role::Head], Activations::Keep),
        ("head", vec![Role::Head], Activations::Recompute),
    ] {
        let some = Phase { train: Some(roles.clone()), ..phase(Factors::Personal, 2.0) };
        let config = RewardConfig { phases: vec![whole.clone(), some], activations, ..base.clone() };
        let (model, report) = fit_on(&bench, &config, &votes(), &users(), name);
        assert_eq!(report.steps, 28);
        let ups = |m: &RewardModel| m.bank.of_user(lm::UserIndex(0)).pop().unwrap().up;
        // The first epochs are computed otherwise with recomputed blocks: equal to rounding where not trained.
        let moved = |distance: f64| distance > 1e-4;
        let distance = |a: &lm::Tensor, b: &lm::Tensor| (a - b).abs().max().double_value(&[]);
        assert_eq!(moved(apart(&model, 0, &start, 0)), roles.contains(&Role::Down), "{name}");
        assert_eq!(moved(distance(&model.head.weight, &start.head.weight)), roles.contains(&Role::Head), "{name}");
        assert_eq!(moved(distance(&ups(&model), &ups(&start))), roles.contains(&Role::Up), "{name}");
    }
}

#[test]
fn what_is_personal_learns_at_a_rate_of_its_own() {
    let bench = Bench::new();
    // Adam's first step moves every number that has a gradient by the learning rate, whatever the gradient's size. A first pass lifts the
    // up-projections from zero: without them a kernel has none.
    let steps = |personal_rate: f64, name: &str| {
        let constant = lm::AdamWConfig { schedule: lm::Schedule::Constant, warmup_ratio: 0.0, ..optimizer(1e-2) };
        let only = Phase { train: Some(vec![Role::Up, Role::Head]), ..phase(Factors::Personal, 1.0) };
        let config = RewardConfig {
            structure: Structure::Kernel,
            optimizer: constant,
            personal_rate,
            batch_votes: count(56),
            phases: vec![only, phase(Factors::Personal, 1.0)],
            ..reward_config(Variant::PShareLora)
        };
        fit_on(&bench, &config, &votes(), &users(), name).0
    };
    let largest = |a: &RewardModel, b: &RewardModel, role: &str| {
        let both = a.bank.parameters().into_iter().zip(b.bank.parameters());
        let of_role = both.filter(|(a, _)| a.name.ends_with(role));
        of_role.map(|(a, b)| (a.tensor - b.tensor).abs().max().double_value(&[])).fold(0.0, f64::max)
    };
    // As good as not moved at all, moved once, and moved once three times as far.
    let [still, plain, far] = [1e-9, 1.0, 3.0].map(|rate| steps(rate, &rate.to_string()));
    for (model, wanted) in [(&plain, 1e-2), (&far, 3e-2)] {
        assert!((largest(model, &still, "kernel") - wanted).abs() < 1e-4, "{}", largest(model, &still, "kernel"));
        assert!(largest(model, &still, "up") == 0.0 && largest(model, &still, "down") == 0.0);
    }
}

#[test]
fn shrinkage_brings_users_together() {
    let bench = Bench::new();
    let distance = |shrinkage: f64, name: &str| {
        let objective = Objective { shrinkage, ..Objective::default() };
        let config = RewardConfig { objective, ..reward_config(Variant::PShareLora) };
        let (model, _) = fit_on(&bench, &config, &votes(), &users(), name);
        apart(&model, 0, &model, 1)
    };
    let (free, some, much) = (distance(0.0, "0"), distance(2.0, "2"), distance(40.0, "40"));
    assert!(free > some && some > 2.0 * much, "{free} {some} {much}");
}

/// Every third training vote becomes a tie; a tenth of the votes is for `dev`.
pub(crate) fn with_ties() -> Vec<Vote> {
    let mut all = votes();
    for (i, vote) in all.iter_mut().enumerate() {
        vote.tie = vote.split == Split::Train && i % 3 == 0;
        if vote.split == Split::Train && i % 10 == 4 {
            vote.split = Split::Dev;
            vote.tie = false;
        }
    }
    all
}

#[test]
fn ties_lapses_and_weights_are_learnt_with_the_rest() {
    let bench = Bench::new();
    for ties in [Ties::RaoKupper, Ties::Davidson] {
        let objective = Objective {
            ties,
            lapse: Lapse::PerUser { per_user: 0.1 },
            centering: 0.01,
            label_smoothing: 0.02,
            weighting: Weighting::Temperature(0.5),
            ..Objective::default()
        };
        let config = RewardConfig { objective, ..reward_config(Variant::PShareLora) };
        let (model, report) = fit_on(&bench, &config, &with_ties(), &users(), &format!("{ties:?}"));
        assert!(report.ties > 10 && report.ties_left_out == 0, "{report:?}");
        let accuracy = judge(&bench, &model, &config, &with_ties()).mean_accuracy;
        assert!(accuracy > 0.85, "{ties:?}: {accuracy}");
        let path = bench.folder.path().join(format!("{ties:?}.safetensors"));
        model.write(&path, &bench.lm).unwrap();
        assert!(RewardModel::read(&path, &bench.lm).is_ok());
        let stored = lm::read_tensors(&path, lm::Device::Cpu, None).unwrap();
        assert!(stored.by_name["ties"].size() == [1] && stored.by_name["lapse"].size() == [2]);
    }
    let (_, report) = fit_on(&bench, &reward_config(Variant::PShareLora), &with_ties(), &users(), "left out");
    assert!(report.ties == 0 && report.ties_left_out > 10, "{report:?}");
}

#[test]
fn issue_23_a_reward_that_is_no_number_is_an_error_and_not_a_wrong_vote() {
    let bench = Bench::new();
    let config = RewardConfig { phases: vec![phase(Factors::Personal, 0.5)], ..reward_config(Variant::PShareLora) };
    let (model, _) = fit_on(&bench, &config, &votes(), &users(), "spoiled");
    _ = tch::no_grad(|| model.head.weight.shallow_clone().fill_(f64::NAN));
    let scored = config.scored(Split::Test);
    let said = reward::predict(&model, &bench.lm, &bench.tokenizer, &votes(), &scored, |_, _| ());
    let error = said.unwrap_err();
    assert!(
        error.is_not_finite() && error.to_string().contains("predictions of test, x:28: a reward of user"),
        "{error}"
    );
}

#[test]
fn early_stopping_keeps_what_dev_liked_best() {
    let bench = Bench::new();
    let config = RewardConfig {
        early_stopping: Some(EarlyStopping { every_steps: count(2), patience: count(3) }),
        optimizer: optimizer(0.3), // too high: it gets worse
        ..reward_config(Variant::PShareLora)
    };
    let (model, report) = fit_on(&bench, &config, &with_ties(), &users(), "stopped");
    let log = fs_err::read_to_string(bench.folder.path().join("stopped.partial/metrics.jsonl")).unwrap();
    let looks: Vec<(usize, f64)> = log
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .filter_map(|l| Some((l["step"].as_u64()? as usize + 1, l["eval_loss"].as_f64()?)))
        .collect();
    let best = looks.iter().copied().fold((0, f64::INFINITY), |a, b| if b.1 < a.1 { b } else { a });
    assert_eq!(report.best_step, Some(best.0), "{looks:?}");
    assert!(report.steps == best.0 + 6 || report.steps == 31, "{report:?} {looks:?}");
    // The model is the best one again.
    let scored = config.scored(Split::Dev);
    let said = reward::predict(&model, &bench.lm, &bench.tokenizer, &with_ties(), &scored, |_, _| ()).unwrap();
    let loss = said.votes.iter().map(|p| -p.probability.ln()).sum::<f64>() / said.votes.len() as f64;
    assert!((loss - best.1).abs() < 1e-6, "{loss} {best:?}");
    let error =
        reward::fit(&config, &bench.lm, &bench.tokenizer, &votes(), &users(), &mut bench.run("reward", "no dev"));
    assert!(error.unwrap_err().to_string().contains("decided votes of known users in the split `dev`"));
}

#[test]
fn a_head_in_the_middle_reads_what_the_blocks_below_made() {
    let bench = Bench::new();
    let config = RewardConfig { depth: Some(count(3)), ..reward_config(Variant::PShareLora) };
    let (model, _) = fit_on(&bench, &config, &votes(), &users(), "cut");
    assert_eq!((model.depth, model.bank.first_block()), (3, 1));
    assert!(judge(&bench, &model, &config, &votes()).mean_accuracy > 0.85);
    let config = RewardConfig { depth: Some(count(5)), ..config };
    let error = reward::fit(&config, &bench.lm, &bench.tokenizer, &votes(), &users(), &mut bench.run("reward", "deep"));
    assert_eq!(error.unwrap_err().to_string(), "reward, `depth`: expected at most the model's 4 blocks, found 5");
}

#[test]
fn a_model_knows_when_it_is_read_on_another_base() {
    let bench = Bench::new();
    let (model, _) = fit_on(&bench, &reward_config(Variant::PShareLora), &votes(), &users(), "own");
    let path = bench.folder.path().join("own.safetensors");
    model.write(&path, &bench.lm).unwrap();
    assert!(RewardModel::read(&path, &bench.lm).is_ok());
    let folder = bench.folder.path().join("other");
    write_model_with(&folder, 6);
    let other = lm::Lm::load(&folder, &device::Compute::new("cpu", "float32", Some(1)).unwrap()).unwrap();
    let error = RewardModel::read(&path, &other).unwrap_err();
    assert!(error.to_string().contains("stored scores again") && error.hint().is_some(), "{error}");
}

#[test]
fn twenty_steps_equal_a_pytorch_loop() {
    let bench = Bench::new();
    let lora = lm::LoraConfig { dropout: 0.0, ..lora() };
    let phases = vec![phase(Factors::Personal, 20.0 / 7.0)]; // SI
    let config = RewardConfig { lora, phases, ..reward_config(Variant::PShareLora) };
    if let Some(folder) = std::env::var_os("IDIOLECT_DUMP") {
        dump(&bench, &config, folder.as_ref());
    }
    fit_on(&bench, &config, &votes(), &users(), "golden");
    let log = fs_err::read_to_string(bench.folder.path().join("golden.partial/metrics.jsonl")).unwrap();
    let ours: Vec<f64> =
        log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["loss"].as_f64().unwrap()).collect();
    // Made by tests/golden/share_lora.py, which says how.
    let path = crate::tiny::repository().join("tests/golden/share_lora.json");
    let golden: serde_json::Value = run::read_json(&path).unwrap();
    let theirs: Vec<f64> = golden["losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
    assert_eq!((ours.len(), theirs.len()), (20, 20));
    let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-4, "{worst}: {ours:?} {theirs:?}");
    assert!(theirs[19] < theirs[0] - 0.05, "something was learnt");
}

/// What the golden's script starts from: the model, the factors as they are drawn, every step's rows.
fn dump(bench: &Bench, config: &RewardConfig, folder: &std::path::Path) {
    let still = RewardConfig { optimizer: optimizer(1e-30), ..config.clone() };
    let (start, _) = fit_on(bench, &still, &votes(), &users(), "drawn");
    fs_err::create_dir_all(folder).unwrap();
    write_model(&folder.join("model"));
    start.write(&folder.join("start.safetensors"), &bench.lm).unwrap();
    let own: Vec<Vote> = votes().into_iter().filter(|v| v.split == Split::Train).collect();
    let all: Vec<usize> = (0..own.len()).collect();
    let run = bench.run("reward", "order");
    let rng = |epoch: usize| run.rng(&["order", &epoch.to_string()]);
    let plan = lm::plan(&all, config.batch_votes, count(3), usize::MAX, |_| 0, rng);
    let row = |vote: &Vote, answer: &str, ending: text::Ending| {
        let row = bench.tokenizer.row(&vote.prompt, answer, ending).unwrap();
        serde_json::json!({"ids": row.ids, "answer_start": row.answer_start})
    };
    let vote = |v: &usize| {
        let v = &own[*v];
        let user = users().binary_search(&v.user_id).unwrap();
        let chosen = row(v, &v.chosen, v.chosen_ending());
        serde_json::json!({"user": user, "chosen": chosen, "rejected": row(v, &v.rejected, v.rejected_ending())})
    };
    let steps: Vec<Vec<serde_json::Value>> =
        plan.batches.iter().take(20).map(|batch| batch.iter().map(vote).collect()).collect();
    let rates: Vec<f64> = (0..20).map(|step| config.optimizer.rate(step, 20)).collect();
    let lm::AdamWConfig { betas, epsilon, max_grad_norm, .. } = config.optimizer;
    let plan = serde_json::json!({"steps": steps, "rates": rates, "betas": betas, "epsilon": epsilon,
        "max_grad_norm": max_grad_norm, "scale": config.lora.alpha / config.lora.rank.get() as f64});
    run::write_json(&folder.join("plan.json"), &plan).unwrap();
}

#[test]
fn a_lower_bound_subtracts_the_exact_gradient_of_what_is_personal() {
    let bench = Bench::new();
    for (name, variant) in [("shared", Variant::PShareLora), ("local", Variant::LoraLocal)] {
        let (model, _) = fit_on(&bench, &reward_config(variant), &votes(), &users(), name);
        let rows: Vec<lm::TokenRow> = votes()
            .iter()
            .take(6)
            .map(|v| bench.tokenizer.row(&v.prompt, &v.chosen, text::Ending::Finished).unwrap().into())
            .collect();
        let prefix = model.prefix(&bench.lm, rows, |_| ()).unwrap();
        let all = [0, 3, 5, 3];
        let got = model.score_and_gradient(&bench.lm, &prefix, &all, lm::UserIndex(1)).unwrap();
        let plain = model.score(&bench.lm, &prefix, &all, lm::UserIndex(1));
        assert!(got.iter().zip(&plain).all(|((a, _), b)| (a - b).abs() < 1e-5));
        assert_eq!(got[1], got[3]);
        // The slope along the gradient's own direction, by finite differences over each personal parameter's largest entries, is
        // the norm: checked by moving the user's factors a little along random directions.
        let lower = model.pessimistic(&bench.lm, &prefix, &all, lm::UserIndex(1), 0.25).unwrap();
        assert!(lower.iter().zip(&got).all(|(l, (s, n))| (l - (s - 0.5 * n)).abs() < 1e-6 && *n > 0.0));
        let numeric = numeric_norm(&bench, &model, &prefix, 5, 1);
        let exact = f64::from(got[2].1);
        assert!((numeric - exact).abs() < 0.02 * exact, "{name}: {numeric} {exact}");
        // The other user's reward does not depend on this one's factors; a global model has nothing personal.
        let spread = model.spread(28.0).unwrap();
        assert!(spread.diversity > 0.0 && spread.users == 2, "{spread:?}");
    }
    let (global, _) = fit_on(&bench, &reward_config(Variant::LoraGlobal), &votes(), &users(), "global");
    let row = bench.tokenizer.row(&votes()[0].prompt, "xx", text::Ending::Finished).unwrap();
    let prefix = global.prefix(&bench.lm, vec![row.into()], |_| ()).unwrap();
    assert_eq!(global.score_and_gradient(&bench.lm, &prefix, &[0], lm::UserIndex(0)).unwrap()[0].1, 0.0);
}

/// The norm of a row's gradient over a user's personal parameters, entry by entry, by central differences.
fn numeric_norm(bench: &Bench, model: &RewardModel, prefix: &lm::Prefix, row: usize, user: i64) -> f64 {
    let mut personal = model.bank.parameters();
    personal.extend(model.head.parameters());
    personal.retain(|p| p.owner == lm::Owner::PerUser);
    let mut squares = 0.0;
    for parameter in personal {
        let own = parameter.tensor.detach().get(user).view(-1);
        for i in 0..own.size()[0] {
            let at = |value: f64| {
                let before = own.double_value(&[i]);
                _ = own.get(i).fill_(before + value);
                let score = f64::from(model.score(&bench.lm, prefix, &[row], lm::UserIndex(user as usize))[0]);
                _ = own.get(i).fill_(before);
                score
            };
            squares += ((at(2e-2) - at(-2e-2)) / 4e-2).powi(2);
        }
    }
    squares.sqrt()
}

#[test]
fn newcomers_are_fitted_without_touching_anybody() {
    let bench = Bench::new();
    // Cleo and Dora judge as Ann and Bob do; they come later, with twelve votes each.
    let mut all = votes();
    for (name, like) in [("cleo", "ann"), ("dora", "bob")] {
        let own: Vec<Vote> = votes().into_iter().filter(|v| v.user_id == like).collect();
        all.extend(own.into_iter().enumerate().filter(|(i, v)| *i < 12 || v.split == Split::Test).map(|(_, v)| Vote {
            user_id: name.into(),
            split: if v.split == Split::Test { Split::Test } else { Split::Adapt },
            ..v
        }));
    }
    for (name, variant, structure) in [
        ("down", Variant::PShareLora, Structure::Lora),
        ("kernel", Variant::PShareLora, Structure::Kernel),
        ("local", Variant::LoraLocal, Structure::Lora),
        ("global", Variant::LoraGlobal, Structure::Lora),
    ] {
        let config = RewardConfig { structure, ..reward_config(variant) };
        let mut run = bench.run("reward", name);
        let (model, _) = reward::fit(&config, &bench.lm, &bench.tokenizer, &all, &users(), &mut run).unwrap();
        let names = ["dora", "cleo"].map(String::from);
        let (joined, report) =
            reward::welcome(&config, &model, &bench.lm, &bench.tokenizer, &all, &names, &mut run).unwrap();
        assert_eq!(joined.users, ["ann", "bob", "cleo", "dora"]);
        assert_eq!(report.map(|r| r.votes), (variant != Variant::LoraGlobal).then_some(24), "{name}");
        let e = judge(&bench, &joined, &config, &all);
        let before = judge(&bench, &model, &config, &all);
        for user in users() {
            let of = |e: &Evaluation| e.users.iter().find(|u| u.user == user).unwrap().clone();
            assert_eq!(of(&e), of(&before), "{name}");
        }
        let late: Vec<f64> = e.users.iter().skip(2).map(|u| u.accuracy.mean).collect();
        if variant == Variant::LoraGlobal {
            assert!(late.iter().all(|a| (a - 0.5).abs() < 0.51));
        } else {
            assert!(late.iter().all(|a| *a > 0.75), "{name}: {late:?}");
        }
    }
}

//! Reward models of users whose numbers leave the finite ones.

use data::{Split, Vote};
use reward::{EarlyStopping, Factors, Objective, Personal, RewardConfig, RewardModel, Variant};

use crate::bench::{Bench, count, optimizer, votes};
use crate::reward::{apart, fit_on, phase, reward_config, users, with_ties};
use crate::tiny::Workspace;

#[test]
fn a_user_whose_numbers_are_not_finite_is_in_quarantine_and_the_others_go_on() {
    let bench = Bench::new();
    let objective = Objective { margin: true, ..Objective::default() };
    let own =
        RewardConfig { objective, phases: vec![phase(Factors::Personal, 3.0)], ..reward_config(Variant::LoraLocal) };
    // One vote of Bob's has a margin that no loss survives.
    let spoil = |votes: &mut [Vote], users: &[&str]| {
        let bad = |v: &&mut Vote| users.contains(&v.user_id.as_str()) && v.source_row == "x:5";
        votes.iter_mut().filter(bad).for_each(|v| v.margin = Some(f32::NAN));
    };
    let mut spoiled = votes();
    spoil(&mut spoiled, &["bob"]);
    let (model, report) = fit_on(&bench, &own, &spoiled, &users(), "both");
    assert_eq!(model.users, ["ann"], "the model holds the healthy users only");
    assert_eq!(report.quarantined.keys().collect::<Vec<_>>(), ["bob"]);
    let why = &report.quarantined["bob"];
    assert!(why.starts_with("step ") && why.ends_with(": the loss is not finite"), "{why}");
    let file = bench.folder.path().join("both.safetensors");
    model.write(&file, &bench.lm).unwrap();
    assert_eq!(RewardModel::read(&file, &bench.lm).unwrap().users, ["ann"]);
    // Where everything is personal Ann's model is the one that she gets beside a healthy Bob.
    let (healthy, _) = fit_on(&bench, &own, &votes(), &users(), "healthy");
    assert!(apart(&model, 0, &healthy, 0) < 1e-4, "{}", apart(&model, 0, &healthy, 0));

    // Everything shared but one factor, early stopping and shrinkage: gone on from the last checkpoint it ends with the same bytes.
    let shared = RewardConfig {
        objective: Objective { shrinkage: 1.0, ..objective },
        early_stopping: Some(EarlyStopping { every_steps: count(2), patience: count(50) }),
        save_every_steps: count(1),
        phases: vec![phase(Factors::Global, 0.2), phase(Factors::Personal, 2.0)],
        ..reward_config(Variant::PShareLora)
    };
    let mut with_dev = with_ties();
    spoil(&mut with_dev, &["bob"]);
    let written = |name: &str| {
        let (model, report) = fit_on(&bench, &shared, &with_dev, &users(), name);
        assert_eq!((model.users.as_slice(), report.quarantined.len()), (["ann".to_owned()].as_slice(), 1));
        let file = bench.folder.path().join("written.safetensors");
        model.write(&file, &bench.lm).unwrap();
        (fs_err::read(file).unwrap(), report)
    };
    let first = written("resumed");
    assert!(first == written("resumed"), "the run goes on behind its last checkpoint");
    assert!(first.1.best_step.is_some() && first.1.final_loss.is_finite());

    // Nobody is left: the fit diverged, and other cells of a matrix may succeed.
    spoil(&mut spoiled, &["ann", "bob"]);
    let fit = |config: &RewardConfig, votes: &[Vote], name: &str| {
        reward::fit(config, &bench.lm, &bench.tokenizer, votes, &users(), &mut bench.run("reward", name)).unwrap_err()
    };
    let error = fit(&own, &spoiled, "nobody");
    assert!(error.is_not_finite() && error.to_string().contains("all 2 in quarantine"), "{error}");

    // A loss that is finite, with a gradient that is not: of an own factor its user is to blame, of what all share nobody. The head is so large
    // that a vote against it has a gradient of 1e30, whose square overflows, and a vote with it has none.
    let up = RewardConfig {
        personal: Personal::Up,
        phases: vec![phase(Factors::Personal, 1.0)],
        ..reward_config(Variant::PShareLora)
    };
    let still = RewardConfig { optimizer: optimizer(1e-30), ..up.clone() };
    let (model, _) = fit_on(&bench, &still, &votes(), &users(), "still");
    let scored = still.scored(Split::Train);
    let said = reward::predict(&model, &bench.lm, &bench.tokenizer, &votes(), &scored, |_, _| ()).unwrap();
    let mut steep = votes();
    for (vote, said) in steep.iter_mut().filter(|v| v.split == Split::Train).zip(said.votes) {
        assert_eq!((&vote.user_id, &vote.source_row), (&said.user, &said.source_row));
        let against = vote.user_id == "bob" && vote.source_row == "x:5";
        if (said.margin < 0.0) != against {
            std::mem::swap(&mut vote.chosen, &mut vote.rejected);
        }
    }
    let huge = |config: RewardConfig| RewardConfig { head_scale: 1e30, ..config };
    let (model, report) = fit_on(&bench, &huge(up), &steep, &users(), "steep");
    assert!(model.users == ["ann"] && report.quarantined["bob"].contains("the gradient is not finite"), "{report:?}");
    let error = fit(&huge(reward_config(Variant::LoraGlobal)), &steep, "shared");
    assert!(error.is_not_finite() && error.to_string().contains("the gradient of the shared parameters"), "{error}");
}

#[test]
fn a_held_out_user_whose_loss_is_not_finite_is_left_out_and_the_others_are_welcome() {
    let bench = Bench::new();
    let mut all = votes();
    for (name, like) in [("cleo", "ann"), ("dora", "bob")] {
        let own = votes().into_iter().filter(|v| v.user_id == like && v.split == Split::Train).take(12);
        all.extend(own.map(|v| Vote { user_id: name.into(), split: Split::Adapt, ..v }));
    }
    all.iter_mut().filter(|v| v.user_id == "cleo").for_each(|v| v.margin = Some(f32::NAN));
    let objective = Objective { margin: true, ..Objective::default() };
    let config = RewardConfig { objective, ..reward_config(Variant::PShareLora) };
    let mut run = bench.run("reward", "held out");
    let (model, _) = reward::fit(&config, &bench.lm, &bench.tokenizer, &all, &users(), &mut run).unwrap();
    let names = ["cleo", "dora"].map(String::from);
    let (joined, report) =
        reward::welcome(&config, &model, &bench.lm, &bench.tokenizer, &all, &names, &mut run).unwrap();
    assert_eq!(joined.users, ["ann", "bob", "dora"]);
    assert_eq!(report.unwrap().quarantined.keys().collect::<Vec<_>>(), ["cleo"]);
}

#[test]
fn a_pipeline_names_the_user_whom_a_reward_model_does_not_hold_and_ends_with_code_3() {
    let workspace = Workspace::new();
    let mut all = votes();
    // Nothing can be learnt of Bob: each of his training votes has a response that is longer than rows may be.
    let long = |v: &&mut Vote| v.user_id == "bob" && v.split == Split::Train;
    all.iter_mut().filter(long).for_each(|v| v.chosen = v.chosen.repeat(100));
    data::write_votes(&workspace.path("votes.parquet"), &all).unwrap();
    let write = |file: &str, text: &str| fs_err::write(workspace.path(file), text).unwrap();
    let card = "name = \"own\"\nsource = \"here\"\nlicence = \"none\"\n[layout]\nkind = \"canonical\"\n\
                [columns]\nweight = \"weight\"\nsplit = \"split\"\n";
    write("own-card.toml", card);
    write(
        "configs/data.toml",
        "card = \"own-card.toml\"\npath = \"votes.parquet\"\n[selection]\nmin_votes = 1\nsplit = { by = \"column\" }\nstrict = false\n",
    );
    let stages =
        ["import", "data", "reward"].map(|k| format!("[[stage]]\nkind = \"{k}\"\nconfig = \"configs/{k}.toml\"\n"));
    write("pipelines/tiny.toml", &format!("name = \"tiny\"\nseed = 3\n{}", stages.concat()));
    let set = ["reward.over_long=\"drop\"", "reward.phases=[{ factors = \"personal\", epochs = 1.0 }]"];
    let ended = workspace.run(&["--set", set[0], "--set", set[1]]).assert().code(3);
    let said = String::from_utf8_lossy(&ended.get_output().stderr).into_owned();
    assert!(said.contains("finished, except: ") && said.contains("reward, `bob` in quarantine: "), "{said}");
    let report: serde_json::Value = run::read_json(&workspace.path("checkpoints/tiny/reward/report.json")).unwrap();
    assert!(report["quarantined"]["bob"].as_str().unwrap().contains("votes is learnt from"), "{report}");
    assert_eq!(report["test"]["users"].as_array().unwrap().len(), 1, "ann alone is predicted");
}

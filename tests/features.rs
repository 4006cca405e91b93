//! Reward features and tastes (RFM) on the tiny model.

use data::{Split, Vote};
use reward::{Factors, People, Phase, RewardConfig, RewardModel, Role, Variant};

use crate::bench::{Bench, count, optimizer, votes};
use crate::reward::{phase, reward_config};

fn rfm(features: usize) -> RewardConfig {
    RewardConfig {
        features: Some(count(features)),
        phases: vec![phase(Factors::Personal, 6.0)],
        ..reward_config(Variant::Rfm)
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn one_feature_or_one_user_is_the_ordinary_model() {
    let bench = Bench::new();
    let global = RewardConfig { variant: Variant::LoraGlobal, features: None, ..rfm(1) };
    let of_ann: Vec<Vote> = votes().into_iter().filter(|v| v.user_id == "ann").collect();
    for (name, features, votes, users) in
        [("one feature", 1, votes(), names(&["ann", "bob"])), ("one user", 5, of_ann, names(&["ann"]))]
    {
        let fit = |config: &RewardConfig, folder: &str| {
            let mut run = bench.run("reward", folder); // the stage's name decides streams, not the folder
            reward::fit(config, &bench.lm, &bench.tokenizer, &votes, &users, &mut run).unwrap()
        };
        let (plain, of_plain) = fit(&global, &format!("{name} global"));
        let (features, of_features) = fit(&rfm(features), &format!("{name} features"));
        assert_eq!(of_plain.final_loss, of_features.final_loss, "{name}");
        let rows: Vec<lm::TokenRow> = votes
            .iter()
            .map(|v| bench.tokenizer.row(&v.prompt, &v.chosen, text::Ending::Finished).unwrap().into())
            .collect();
        let prefix = plain.prefix(&bench.lm, rows, |_| ()).unwrap();
        let all: Vec<usize> = (0..votes.len()).collect();
        assert_eq!(
            plain.score(&bench.lm, &prefix, &all, lm::UserIndex(0)),
            features.score(&bench.lm, &prefix, &all, lm::UserIndex(0)),
            "{name}"
        );
    }
}

#[test]
fn tastes_serve_opposite_people_and_newcomers_and_touch_nobody() {
    let bench = Bench::new();
    // Cleo judges as Ann does; she comes later, with twelve votes.
    let mut all = votes();
    let like_ann: Vec<Vote> = votes().into_iter().filter(|v| v.user_id == "ann").collect();
    all.extend(like_ann.into_iter().enumerate().filter(|(i, v)| *i < 12 || v.split == Split::Test).map(|(_, v)| {
        Vote { user_id: "cleo".into(), split: if v.split == Split::Test { Split::Test } else { Split::Adapt }, ..v }
    }));
    let config = RewardConfig { swap: true, ..rfm(4) };
    let tasted = |all: &[Vote], newcomers: &[String], name: &str| -> (RewardModel, People) {
        let mut run = bench.run("reward", name);
        let users = names(&["ann", "bob"]);
        let (model, _) = reward::fit(&config, &bench.lm, &bench.tokenizer, all, &users, &mut run).unwrap();
        assert_eq!(model.taste(lm::UserIndex(0)).len(), 2, "no more features than users");
        let (model, report) =
            reward::welcome(&config, &model, &bench.lm, &bench.tokenizer, all, newcomers, &mut run).unwrap();
        assert!(report.is_none(), "no gradient step");
        reward::taste_people(&config, model, &bench.lm, &bench.tokenizer, all).unwrap()
    };
    let judge = |model: &RewardModel, all: &[Vote]| {
        let scored = config.scored(Split::Test);
        let said = reward::predict(model, &bench.lm, &bench.tokenizer, all, &scored, |_, _| ()).unwrap();
        eval::evaluate(&said, "test", &model.users, 3)
    };
    let (model, people) = tasted(&all, &names(&["cleo"]), "three");
    let e = judge(&model, &all);
    let accuracy = |user: &str| e.users.iter().find(|u| u.user == user).unwrap().accuracy.mean;
    assert!(accuracy("ann") > 0.85 && accuracy("bob") > 0.85 && accuracy("cleo") > 0.85, "{e:?}");
    let (alone, of_alone) = tasted(&votes(), &[], "two");
    for user in ["ann", "bob"] {
        let of = |e: &eval::Evaluation| e.users.iter().find(|u| u.user == user).unwrap().accuracy.mean;
        assert_eq!(of(&judge(&alone, &votes())), of(&e));
        assert_eq!(people.taste(user), of_alone.taste(user), "{user}");
    }
    assert!(judge(&alone, &votes()).swapped.unwrap() < 0.35);
    // Whoever has voted is known better than whoever has not.
    let unknown = people.taste("nobody");
    assert!(unknown.votes == 0 && people.taste("cleo").votes == 12);
    assert!(people.taste("cleo").covariance.trace() < unknown.covariance.trace());

    // The files give back the same, and the model's probes are those of its tastes.
    let (a, b) = (bench.folder.path().join("reward.safetensors"), bench.folder.path().join("people.safetensors"));
    model.write(&a, &bench.lm).unwrap();
    people.write(&b).unwrap();
    assert_eq!(People::read(&b).unwrap(), people);
    assert_eq!(judge(&RewardModel::read(&a, &bench.lm).unwrap(), &all), e);
    assert!(People::read(&a).unwrap_err().to_string().contains("idiolect.people"));
}

#[test]
fn a_global_phase_is_the_ordinary_model_and_tastes_keep_their_scale() {
    let bench = Bench::new();
    let constant = lm::AdamWConfig { schedule: lm::Schedule::Constant, warmup_ratio: 0.0, ..optimizer(1e-2) };
    let fit = |config: RewardConfig, name: &str| {
        let config = RewardConfig { optimizer: constant.clone(), ..config };
        let mut run = bench.run("reward", name);
        let users = names(&["ann", "bob"]);
        reward::fit(&config, &bench.lm, &bench.tokenizer, &votes(), &users, &mut run).unwrap().0
    };
    let tastes = Phase { train: Some(vec![Role::Tastes]), ..phase(Factors::Personal, 2.0) };
    let model = fit(RewardConfig { phases: vec![phase(Factors::Global, 3.0), tastes], ..rfm(2) }, "features");
    let global = RewardConfig { phases: vec![phase(Factors::Personal, 3.0)], ..reward_config(Variant::LoraGlobal) };
    let global = fit(global, "global");
    let numbers = |t: &lm::Tensor| Vec::<f32>::try_from(t.detach().flatten(0, -1)).unwrap();
    // The first feature is what one reward for all has learnt, to rounding; the others wait until people may differ.
    let alike = |a: &lm::Tensor, b: &lm::Tensor| numbers(a).iter().zip(numbers(b)).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(alike(&model.head.features.as_ref().unwrap().get(0), &global.head.weight));
    for (a, b) in model.bank.of_user(lm::UserIndex(0)).into_iter().zip(global.bank.of_user(lm::UserIndex(0))) {
        assert!(alike(&a.down, &b.down) && alike(&a.up, &b.up));
    }
    let [ann, bob] = [0, 1].map(|u| model.taste(lm::UserIndex(u)));
    assert_eq!((ann[0], bob[0]), (1.0, 1.0));
    assert!(ann[1] * bob[1] < 0.0, "{ann:?} {bob:?}");
}

#[test]
fn settings_that_mean_nothing_are_told() {
    let bench = Bench::new();
    let refused = |config: RewardConfig| {
        let mut run = bench.run("reward", "refused");
        let users = names(&["ann", "bob"]);
        reward::fit(&config, &bench.lm, &bench.tokenizer, &votes(), &users, &mut run).unwrap_err().to_string()
    };
    assert!(refused(RewardConfig { features: None, ..rfm(2) }).contains("`features`"));
    assert!(
        refused(RewardConfig { features: Some(count(2)), ..reward_config(Variant::PShareLora) }).contains("`features`")
    );
    let mut decaying = rfm(2);
    decaying.optimizer.weight_decay = 0.1;
    assert!(refused(decaying).contains("weight_decay"));
}

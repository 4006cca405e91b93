//! Supervised fine-tuning on the tiny model, through the libraries.

use data::{Split, Vote};
use lm::{Activations, Lm, LoraConfig, Tensor};
use policy::{Policies, Scope, SftConfig, SftReport};

use crate::bench::{Bench, count, lora, optimizer, preferred, votes};

fn config() -> SftConfig {
    SftConfig {
        scope: Scope::PerUser,
        lora: LoraConfig { dropout: 0.0, ..lora() },
        optimizer: optimizer(2e-2),
        batch_answers: count(4),
        max_epochs: count(3),
        token_budget: 1_000_000,
        max_row_tokens: 200,
        over_long: text::OverLong::Error,
        micro_batch_tokens: count(150),
        activations: Activations::Keep,
        save_every_steps: count(1000),
    }
}

fn train(bench: &Bench, config: &SftConfig, users: &[&str], name: &str) -> problem::Result<(Policies, SftReport)> {
    let users: Vec<String> = users.iter().map(|u| (*u).to_owned()).collect();
    let own: Vec<Vote> = votes().into_iter().filter(|v| users.contains(&v.user_id)).collect();
    policy::train_sft(config, &bench.lm, &bench.tokenizer, &own, &users, &mut bench.run("sft", name))
}

fn factors(policies: &Policies, user: usize) -> Vec<Tensor> {
    policies.bank.of_user(lm::UserIndex(user)).into_iter().flat_map(|f| [f.down, f.up]).collect()
}

fn assert_close(a: &[Tensor], b: &[Tensor]) {
    for (a, b) in a.iter().zip(b) {
        let (distance, size) = ((a - b).abs().max().double_value(&[]), b.abs().max().double_value(&[]));
        assert!(size > 1e-4, "{size}");
        assert!(distance < 1e-5 * size.max(1.0), "{distance} of {size}");
    }
}

#[test]
fn sft_gets_better_and_users_trained_together_get_what_training_alone_gives() {
    let bench = Bench::new();
    let (together, report) = train(&bench, &config(), &["ann", "bob"], "both").unwrap();
    assert!(report.quarantined.is_empty(), "{report:?}");
    for (u, user) in ["ann", "bob"].into_iter().enumerate() {
        let own = &report.models[user];
        assert!(own.final_loss < own.first_loss - 0.5, "{user}: {own:?}");
        // Half of the responses that SFT reads end by themselves. On other prompts the user's own
        // responses gained more than the other user's, whether both sides end by themselves or neither, or only the other's does.
        for endings in [[true, true], [false, false], [false, true]] {
            let share = preferred(&bench, &together, u, endings);
            assert!(share > 0.9, "{user}, finished {endings:?}: {share}");
        }
        let (alone, _) = train(&bench, &config(), &[user], user).unwrap();
        assert_close(&factors(&together, u), &factors(&alone, 0));
    }
    let global = SftConfig { scope: Scope::Global, ..config() };
    let (policies, report) = train(&bench, &global, &["ann", "bob"], "global").unwrap();
    assert_eq!(policies.users, [policy::EVERYONE]);
    assert_eq!(report.models[policy::EVERYONE].answers, 56);
}

/// The same bench with a base in which the token that bob likes is so unlikely that his gradients overflow, and hers do not notice.
fn spoiled() -> Bench {
    let mut bench = Bench::new();
    let train = |v: &Vote| v.split == Split::Train && v.user_id == "ann";
    let mut least = Tensor::full([bench.lm.shape.vocab_size], f64::INFINITY, (tch::Kind::Float, tch::Device::Cpu));
    for vote in votes().into_iter().filter(train) {
        let ending = text::Ending::Finished;
        let row = bench.tokenizer.row(&vote.prompt, &vote.chosen, ending).unwrap();
        let logits = lm::full_logits(&bench.lm, &row.ids, None); // [T, V]
        let of_response = logits.slice(0, row.answer_start as i64 - 1, None, 1);
        least = least.minimum(&of_response.amin([0i64].as_slice(), false));
    }
    // The token whose logit is positive wherever ann's responses are predicted: against its embedding there is nothing but bob.
    assert!(least.max().double_value(&[]) > 0.0, "no token has positive logits throughout");
    let liked = least.argmax(0, false).int64_value(&[]);
    let path = bench.folder.path().join("model/model.safetensors");
    let mut tensors = Tensor::read_safetensors(&path).unwrap();
    let z = bench.tokenizer.encode("z").unwrap()[0];
    for (name, tensor) in &mut tensors {
        if name == "model.embed_tokens.weight" {
            let opposite = tensor.get(liked) * -1e25;
            tensor.get(z).copy_(&opposite);
        }
    }
    lm::write_tensors(&path, &tensors, None).unwrap();
    let compute = device::Compute::new("cpu", "float32", Some(1)).unwrap();
    bench.lm = Lm::load(&bench.folder.path().join("model"), &compute).unwrap();
    bench
}

#[test]
fn issue_22_a_user_who_leaves_the_finite_numbers_is_in_quarantine_and_the_others_go_on() {
    let bench = spoiled();
    let gentle = SftConfig { optimizer: optimizer(1e-4), save_every_steps: count(1), ..config() };
    let (policies, report) = train(&bench, &gentle, &["ann", "bob"], "both").unwrap();
    assert_eq!(policies.users, ["ann"]);
    assert_eq!(report.models.keys().collect::<Vec<_>>(), ["ann"]);
    assert_eq!(report.models["ann"].steps, 21);
    assert!(report.quarantined["bob"].contains("step 0 of the user's: the"), "{report:?}");
    assert!(report.quarantined["bob"].contains("is not finite"), "{report:?}");
    let (alone, _) = train(&bench, &gentle, &["ann"], "ann").unwrap();
    assert_close(&factors(&policies, 0), &factors(&alone, 0));
    // Gone on from the last checkpoint, with bob in quarantine, it ends the same.
    let (again, report) = train(&bench, &gentle, &["ann", "bob"], "both").unwrap();
    assert!(report.quarantined.contains_key("bob"), "{report:?}");
    assert!(factors(&again, 0).iter().zip(factors(&policies, 0)).all(|(a, b)| a.equal(&b)));
    // With nobody left, other cells of a matrix go on.
    let error = train(&bench, &gentle, &["bob"], "bob").unwrap_err();
    assert!(error.is_not_finite(), "{error}");
    assert!(error.to_string().contains("all 1 in quarantine, such as `bob`: step 0"), "{error}");
}

#[test]
fn issue_22_a_user_without_a_batch_within_the_budget_is_in_quarantine() {
    let bench = Bench::new();
    let users = ["ann", "eve"].map(String::from);
    let own: Vec<Vote> = votes().into_iter().filter(|v| v.user_id == "ann").collect();
    let mut run = bench.run("sft", "eve");
    let (policies, report) = policy::train_sft(&config(), &bench.lm, &bench.tokenizer, &own, &users, &mut run).unwrap();
    assert_eq!(policies.users, ["ann"]);
    assert!(report.quarantined["eve"].contains("no batch of chosen responses"), "{report:?}");
}

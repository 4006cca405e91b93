//! A batch gives every row and every user what they would get alone.

use std::num::NonZero;

use lm::{
    Activations, AllBlocks, AllLinear, Bank, BankConfig, Blocks, Hooks, InitBound, InitUsers, Lm, LoraConfig, Middle,
    Owners, Place, Prefix, Sampling, Sharing, Storage, Targets, Tensor, TokenRow, Trace, UserIndex,
};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, no_grad};

use crate::common::{Families, float32, formula, golden, tiny};

fn model(name: &str) -> Lm {
    let golden: Families = golden("families.json");
    tiny(&golden.families[name], &float32())
}

fn lora(blocks: Blocks) -> LoraConfig {
    LoraConfig {
        rank: NonZero::new(3).unwrap(),
        alpha: 6.0,
        use_rslora: true,
        dropout: 0.0,
        targets: Targets::All(AllLinear::AllLinear),
        blocks,
        init_bound: InitBound::default(),
        init_users: InitUsers::Independent,
    }
}

/// A bank whose up-projections are not zero.
fn bank(lm: &Lm, sharing: [Sharing; 2], middle: Middle, users: usize, blocks: Blocks) -> Bank {
    let config = BankConfig { lora: lora(blocks), down: sharing[0], up: sharing[1], middle, users };
    let names: Vec<String> = (0..users).map(|u| format!("user {u}")).collect();
    let stream = |name: &str| ChaCha8Rng::seed_from_u64(name.bytes().fold(7, |h, b| h * 31 % 1_000_003 + u64::from(b)));
    let bank = Bank::new(&config, lm, &names, &Storage::memory(), stream).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for parameter in bank.parameters().iter().filter(|p| p.name.rsplit('.').next() == Some("up")) {
        let values: Vec<f32> = (0..parameter.tensor.numel()).map(|_| rng.random_range(-0.3..0.3)).collect();
        let mut tensor = parameter.tensor.shallow_clone();
        no_grad(|| tensor.copy_(&Tensor::from_slice(&values).view(tensor.size().as_slice())));
    }
    bank
}

/// The sum of `weights` times the rows' answer log-probabilities, and its gradients.
fn loss_and_gradients(
    lm: &Lm,
    bank: &Bank,
    prefix: &Prefix,
    groups: &[Vec<usize>],
    users: &[Place],
    weights: &[f32],
    activations: Activations,
) -> (Vec<f64>, Vec<Tensor>) {
    let parameters: Vec<Tensor> = bank.parameters().into_iter().map(|p| p.tensor).collect();
    let batch = prefix.batch(lm, groups);
    let factors = bank.rows(users, batch.lengths());
    let trace = Trace::new(lm, batch, factors, activations);
    let logp = lm::answer_logp(lm, &trace.batch, &trace.hidden);
    let loss = (&logp * Tensor::from_slice(weights)).sum(Kind::Float);
    let values = Vec::<f64>::try_from(logp.detach().to_kind(Kind::Double)).unwrap();
    (values, trace.backward(&loss, &parameters, &[], "test").unwrap())
}

fn close(a: &[Tensor], b: &[Tensor], what: &str) {
    for (a, b) in a.iter().zip(b) {
        let (distance, size) = ((a - b).norm().double_value(&[]), b.norm().double_value(&[]));
        // Rounding is relative to what was added up, and a gradient's sum may cancel: 1.4e-5 was seen among random batches.
        assert!(size > 0.0, "{what}: {distance} of {size}");
        assert!(distance <= 4e-5 * size, "{what}: {distance} of {size}");
    }
}

fn row(length: usize, start: usize, salt: i64) -> TokenRow {
    // The first four tokens are the same in all rows of a length: they share a prompt.
    let id = |t: usize| ((t * t * 7 + t * 3 + length) as i64 + if t < start { 0 } else { salt * 11 }) % 48;
    TokenRow { ids: (0..length).map(id).collect(), answer_start: start }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Mixed users, any lengths, any factors of their own: losses and gradients of each user equal those of the user alone.
    #[test]
    fn users_cannot_tell_that_they_share_a_batch(
        shape in prop::collection::vec((0usize..4, 5usize..24, 0i64..5), 2..9),
        family in 0usize..3,
        middle in 0usize..3,
        recompute in any::<bool>(),
    ) {
        let lm = model(["llama", "gpt2", "qwen2, sliding window"][family]);
        let middle = [Middle::None, Middle::Kernel(Sharing::Personal), Middle::Scale(Sharing::Personal)][middle];
        let bank = bank(&lm, [Sharing::Personal; 2], middle, 4, Blocks::Last { last: NonZero::new(2).unwrap() });
        let rows: Vec<TokenRow> = shape.iter().map(|(_, length, salt)| row(*length, 4, *salt)).collect();
        let users: Vec<Place> = shape.iter().map(|(user, ..)| Place(*user)).collect();
        let prefix = Prefix::new(&lm, rows, bank.first_block()..lm.depth(), |_| ()).unwrap();
        let activations = if recompute { Activations::Recompute } else { Activations::Keep };
        let groups: Vec<Vec<usize>> = (0..users.len()).map(|i| vec![i]).collect();
        let weights = vec![1.0; users.len()];
        let (together, gradients) = loss_and_gradients(&lm, &bank, &prefix, &groups, &users, &weights, activations);
        for user in Place::all(4) {
            let own: Vec<usize> = (0..users.len()).filter(|i| users[*i] == user).collect();
            let slices = |g: &[Tensor]| -> Vec<Tensor> { g.iter().map(|t| t.get(user.0 as i64)).collect() };
            if own.is_empty() {
                prop_assert!(slices(&gradients).iter().all(|g| g.abs().max().double_value(&[]) == 0.0));
                continue;
            }
            let groups: Vec<Vec<usize>> = own.iter().map(|i| vec![*i]).collect();
            let mine = vec![user; own.len()];
            let (alone, expected) =
                loss_and_gradients(&lm, &bank, &prefix, &groups, &mine, &vec![1.0; own.len()], Activations::Keep);
            for (i, value) in own.iter().zip(&alone) {
                prop_assert!((together[*i] - value).abs() <= 1e-5 * value.abs(), "{} {}", together[*i], value);
            }
            close(&slices(&gradients), &slices(&expected), "user");
        }
    }
}

#[test]
fn a_shared_prompt_and_parts_of_a_batch_change_nothing() {
    let lm = model("llama");
    for (sharing, middle) in [
        ([Sharing::Personal, Sharing::Shared], Middle::None),
        ([Sharing::Shared, Sharing::Shared], Middle::Kernel(Sharing::Personal)),
        ([Sharing::Shared, Sharing::Personal], Middle::Scale(Sharing::Shared)),
    ] {
        let bank = bank(&lm, sharing, middle, 2, Blocks::Range { from: 1, to: 3 });
        let rows: Vec<TokenRow> = [(9, 1), (9, 2), (9, 3), (12, 1), (12, 2)].map(|(l, s)| row(l, 4, s)).to_vec();
        let prefix = Prefix::new(&lm, rows, bank.first_block()..lm.depth(), |_| ()).unwrap();
        let weights = [1.0, -1.0, 0.5, 1.0, -2.0];
        let run = |groups: &[Vec<usize>], users: &[Place], weights: &[f32], activations| {
            loss_and_gradients(&lm, &bank, &prefix, groups, users, weights, activations)
        };
        let apart: Vec<Vec<usize>> = (0..5).map(|i| vec![i]).collect();
        let (values, expected) = run(&apart, &[0, 0, 0, 1, 1].map(Place), &weights, Activations::Keep);
        let shared = [vec![0, 1, 2], vec![3, 4]];
        assert!(prefix.batch(&lm, &shared).lengths() == [4 + 3 * 5, 4 + 2 * 8]);
        for activations in [Activations::Keep, Activations::Recompute] {
            let (same, gradients) = run(&shared, &[0, 1].map(Place), &weights, activations);
            assert!(values.iter().zip(&same).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs()), "{values:?} {same:?}");
            close(&gradients, &expected, "a shared prompt");
        }
        let mut sum = None;
        for (group, user, part) in [(&shared[..1], 0, &weights[..3]), (&shared[1..], 1, &weights[3..])] {
            lm::accumulate(&mut sum, run(group, &[Place(user)], part, Activations::Recompute).1);
        }
        close(&sum.unwrap(), &expected, "parts");
    }
}

#[test]
fn chunked_log_probabilities_have_the_gradient_of_log_softmax() {
    let lm = model("llama, biases, tied");
    let batch: Vec<TokenRow> = (0..40).map(|i| row(20, 2, i)).collect(); // 720 targets: two chunks
    let prefix = Prefix::new(&lm, batch, lm.depth()..lm.depth(), |_| ()).unwrap();
    let groups: Vec<Vec<usize>> = (0..40).map(|i| vec![i]).collect();
    let inputs = prefix.batch(&lm, &groups);
    let hidden = lm::forward(&lm, &inputs, None).set_requires_grad(true);
    let ours = lm::answer_logp(&lm, &inputs, &hidden);
    let weights = Tensor::arange(40, (Kind::Float, tch::Device::Cpu)) - 17.0;
    let gradient = &lm::gradients(&(&ours * &weights).sum(Kind::Float), &[&hidden]).unwrap()[0];
    // By libtorch: every position's logits, log_softmax, gather.
    let logits = lm::logits_of(&lm, &hidden).view([40, 20, -1]);
    let ids: Vec<i64> = (0..40).flat_map(|i| row(20, 2, i).ids).collect();
    let targets = Tensor::from_slice(&ids).view([40, 20]).narrow(1, 2, 18).unsqueeze(2);
    let theirs = logits.narrow(1, 1, 18).log_softmax(2, Kind::Float).gather(2, &targets, false).sum_dim_intlist(
        [1i64, 2].as_slice(),
        false,
        Kind::Float,
    );
    assert!((&ours - &theirs).abs().max().double_value(&[]) < 1e-4);
    let expected = lm::gradients(&(&theirs * &weights).sum(Kind::Float), &[&hidden]).unwrap();
    close(std::slice::from_ref(gradient), &expected, "log-probabilities");
}

/// The gradients of log-probabilities near 1 in bfloat16, compared with float64 on the very logits: what is left to 1 is what is learnt from.
#[test]
fn issue_23_gradients_near_probability_1_survive_bfloat16() {
    let golden: Families = golden("families.json");
    let family = &golden.families["llama, biases, tied"];
    let lm = tiny(family, &device::Compute::new("cpu", "bfloat16", Some(1)).unwrap());
    let (_, head) = formula(&family.names).into_iter().find(|(name, _)| name == "model.embed_tokens.weight").unwrap();
    let narrow = head.to_kind(Kind::BFloat16); // [V, E]
    let head = narrow.to_kind(Kind::Double);
    let lengths = |t: &Tensor, keep: bool| t.norm_scalaropt_dim(2.0, [1i64].as_slice(), keep);
    let targets = Tensor::arange(40, (Kind::Int64, lm.device));
    let (own, at) = (head.index_select(0, &targets), targets.unsqueeze(1));
    let mut near = 0;
    for length in [2.0, 4.0, 6.0, 8.0, 12.0, 16.0] {
        // Hidden states along the targets' own rows: the longer, the nearer to 1.
        let hidden = (&own / lengths(&own, true) * length).to_kind(Kind::BFloat16).set_requires_grad(true);
        let p = hidden.detach().matmul(&narrow.tr()).to_kind(Kind::Double).softmax(1, Kind::Double);
        let left = p.gather(1, &at, false).neg() + 1.0; // [M, 1]
        let want = p.neg().scatter_add(1, &at, &Tensor::ones_like(&left)).matmul(&head);
        let logp = lm::token_logp(&lm, &hidden, &targets);
        let found = &lm::gradients(&logp.sum(Kind::Float), &[&hidden]).unwrap()[0];
        let apart = lengths(&(found.to_kind(Kind::Double) - &want), false) / lengths(&want, false);
        let rows = Vec::<f64>::try_from(&left.squeeze_dim(1)).unwrap();
        for (left, apart) in rows.iter().zip(Vec::<f64>::try_from(&apart).unwrap()).filter(|(left, _)| **left > 1e-6) {
            // A logit may be rounded the other way, which changes 1 - p by some percent.
            assert!(apart < 0.1, "1 - p = {left:.1e}, length {length}: off by {apart} of the gradient");
            near += usize::from(*left < 3e-3);
        }
    }
    assert!(near >= 10, "{near} probabilities of .997 and more");
}

#[test]
fn a_sample_repeats_with_its_seed_whatever_its_neighbours() {
    let lm = model("llama");
    let prompts: Vec<Vec<i64>> = [7, 3, 19].map(|l| row(l, 2, 1).ids).to_vec();
    let sampling = Sampling::at(1.0, 20, vec![3, 11, 12, 40]);
    let seeds: Vec<[u8; 32]> = (0..12).map(|i| [i; 32]).collect();
    let run =
        |prompts: &[Vec<i64>], seeds: &[[u8; 32]]| lm::generate(&lm, None, prompts, seeds, &sampling, Hooks::default());
    let together = run(&prompts, &seeds);
    assert_eq!(together, run(&prompts, &seeds));
    assert!(together.iter().any(lm::Sample::finished));
    assert!(together.iter().any(|s| !s.finished()));
    for i in 0..12 {
        assert_eq!(run(&prompts[i / 4..=i / 4], &seeds[i..=i])[0], together[i], "row {i}");
    }
}

/// In float32 and bfloat16 a row's logits are the same bits whoever is beside it, of whatever length, with adapters of
/// other users: seen through the tokens' scores that `on_score` is told.
#[test]
fn with_fixed_shapes_bits_do_not_depend_on_neighbours() {
    let golden: Families = golden("families.json");
    for dtype in ["float32", "bfloat16"] {
        let compute = device::Compute::new("cpu", dtype, Some(1)).unwrap();
        let lm = tiny(&golden.families["llama"], &compute);
        let bank = bank(&lm, [Sharing::Personal; 2], Middle::None, 3, Blocks::All(AllBlocks::All));
        let prompts: Vec<Vec<i64>> = [7, 3, 19, 80].map(|l| row(l, 2, 1).ids).to_vec();
        let users = [0, 1, 2, 1].map(Place);
        let sampling = Sampling { fixed_shapes: true, ..Sampling::at(1.0, 24, vec![3, 40]) };
        let run = |rows: &[usize]| -> Vec<Vec<u32>> {
            let mut bits = vec![Vec::new(); rows.len()];
            let mut note = |row: usize, score: f32| bits[row].push(score.to_bits());
            let hooks = Hooks { on_score: Some(&mut note), ..Hooks::default() };
            let prompts: Vec<Vec<i64>> = rows.iter().map(|r| prompts[*r].clone()).collect();
            let users: Vec<Place> = rows.iter().map(|r| users[*r]).collect();
            let seeds: Vec<[u8; 32]> = rows.iter().map(|r| [*r as u8; 32]).collect();
            lm::generate(&lm, Some((&bank, &users)), &prompts, &seeds, &sampling, hooks);
            bits
        };
        let together = run(&[0, 1, 2, 3]);
        assert!(together.iter().all(|b| !b.is_empty()));
        for (r, bits) in together.iter().enumerate() {
            assert_eq!(run(&[r])[0], *bits, "{dtype}, row {r} alone");
        }
        let others = run(&[2, 0]);
        assert_eq!((&others[0], &others[1]), (&together[2], &together[0]), "{dtype}");
    }
}

#[test]
fn stop_strings_streaming_and_repetition() {
    let lm = model("gptj");
    let prompt = vec![row(7, 2, 1).ids];
    let greedy = Sampling::greedy(12, vec![]);
    let free = &lm::generate(&lm, None, &prompt, &[[0; 32]], &greedy, Hooks::default())[0];
    assert_eq!((free.ids.len(), free.stop), (12, lm::Stop::Length));
    // Tokens as words `<n>`: stop at the text of the third.
    let decode = |ids: &[i64]| ids.iter().map(|id| format!("<{id}>")).collect::<String>();
    let texts = ["never".to_owned(), format!("<{}>", free.ids[2])];
    let mut told = Vec::new();
    let mut note = |row: usize, token: i64| told.push((row, token));
    let hooks = Hooks {
        stop_strings: Some(lm::StopStrings { texts: &texts, decode: &decode }),
        on_token: Some(&mut note),
        ..Hooks::default()
    };
    let stopped = &lm::generate(&lm, None, &prompt, &[[0; 32]], &greedy, hooks)[0];
    let first = free.ids.iter().position(|id| *id == free.ids[2]).unwrap();
    assert_eq!((stopped.ids.as_slice(), stopped.stop), (&free.ids[..=first], lm::Stop::Text(1)));
    assert_eq!(told, stopped.ids.iter().map(|id| (0, *id)).collect::<Vec<_>>());
    // With an overwhelming penalty no token comes twice.
    let penalised = Sampling { repetition_penalty: Some(1e6), ..greedy };
    let mut ids = lm::generate(&lm, None, &prompt, &[[0; 32]], &penalised, Hooks::default())[0].ids.clone();
    ids.extend(&prompt[0]);
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    let before: std::collections::HashSet<&i64> = prompt[0].iter().collect();
    assert_eq!(ids.len(), count - (prompt[0].len() - before.len()), "a token was repeated");
}

#[test]
fn a_global_bank_becomes_personal_without_a_bit_of_difference() {
    let lm = model("llama");
    let shared = [Sharing::Shared; 2];
    use Sharing::{Personal, Shared};
    let cases = [
        (Middle::None, Owners { down: Personal, up: Shared, middle: Shared }),
        (Middle::None, Owners { down: Shared, up: Personal, middle: Shared }),
        (Middle::None, Owners { down: Personal, up: Personal, middle: Shared }),
        (Middle::Kernel(Shared), Owners { down: Shared, up: Shared, middle: Personal }),
        (Middle::Scale(Shared), Owners { down: Shared, up: Shared, middle: Personal }),
    ];
    let rows: Vec<TokenRow> = [(9, 1), (9, 2), (15, 3), (12, 1), (21, 2)].map(|(l, s)| row(l, 4, s)).to_vec();
    let groups: Vec<Vec<usize>> = (0..5).map(|i| vec![i]).collect();
    let users = [0, 2, 2, 1, 0].map(Place);
    for (middle, owners) in cases {
        let global = bank(&lm, shared, middle, 3, Blocks::Range { from: 1, to: 3 }).ahead_of(owners);
        let personal = global.personalised(owners, 3, &Storage::memory()).unwrap();
        let prefix = Prefix::new(&lm, rows.clone(), global.first_block()..lm.depth(), |_| ()).unwrap();
        let batch = prefix.batch(&lm, &groups);
        let hidden = |bank: &Bank, users: &[Place]| lm::forward(&lm, &batch, Some(&bank.rows(users, batch.lengths())));
        assert!(hidden(&global, &users).equal(&hidden(&personal, &users)), "{owners:?}");
        // The present users alone, in another order of numbers: the same rows.
        let present = personal.present(&[2, 0].map(UserIndex));
        let prefix = Prefix::new(&lm, rows[..3].to_vec(), global.first_block()..lm.depth(), |_| ()).unwrap();
        let some = prefix.batch(&lm, &groups[..3]);
        let of = |bank: &Bank, users: &[Place]| lm::forward(&lm, &some, Some(&bank.rows(users, some.lengths())));
        assert!(of(&personal, &[0, 2, 2].map(Place)).equal(&of(&present, &[1, 0, 0].map(Place))), "{owners:?}");
        assert_eq!(personal.config().users, 3);
    }
}

#[test]
fn kept_prefixes_are_read_again_and_belong_to_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    let files = || {
        let mut files: Vec<_> = folder.path().read_dir().unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        files
    };
    let rows: Vec<TokenRow> = [(9, 1), (9, 2), (12, 1)].map(|(l, s)| row(l, 4, s)).to_vec();
    let states = |lm: &Lm, rows: &[TokenRow], depth: usize| {
        let mut told = 0;
        let prefix = Prefix::new(lm, rows.to_vec(), depth..lm.depth(), |n| told += n).unwrap();
        assert_eq!(told, rows.len());
        let hidden = lm::forward(lm, &prefix.batch(lm, &[vec![0, 1], vec![2]]), None);
        Vec::<f32>::try_from(hidden.flatten(0, -1)).unwrap()
    };
    let plain = model("llama");
    let keeping = model("llama").keeping_prefixes(folder.path(), "a base");
    let expected = states(&plain, &rows, 1);
    assert_eq!(states(&keeping, &rows, 1), expected);
    assert_eq!(files().len(), 1);
    assert_eq!(states(&keeping, &rows, 1), expected);
    assert_eq!(files().len(), 1);

    // The file is what counts the second time: zeros in it come out.
    let kept = lm::read_tensors(&files()[0], tch::Device::Cpu, None).unwrap();
    let zeros: Vec<(String, Tensor)> = kept.by_name.iter().map(|(n, t)| (n.clone(), t.zeros_like())).collect();
    lm::write_tensors(&files()[0], &zeros, Some(("idiolect.frozen-states", "1".into()))).unwrap();
    assert_ne!(states(&keeping, &rows, 1), expected);
    // Unless it is of another format, or says nothing of it: then it is computed anew, and written in ours.
    for format in [None, Some(("idiolect.frozen-states", "0".into()))] {
        lm::write_tensors(&files()[0], &zeros, format).unwrap();
        assert_eq!(states(&keeping, &rows, 1), expected);
        let written = lm::read_tensors(&files()[0], tch::Device::Cpu, None).unwrap();
        assert_eq!(written.metadata["idiolect.frozen-states"], "1");
    }
    fs_err::write(&files()[0], [0; 40]).unwrap();
    let error = Prefix::new(&keeping, rows.clone(), 1..keeping.depth(), |_| ()).unwrap_err();
    assert!(error.to_string().contains("whole safetensors file"), "{error}");
    fs_err::remove_file(&files()[0]).unwrap();

    // Another order, depth or base, or what lies in memory, is another thing.
    states(&keeping, &[rows[2].clone(), rows[0].clone(), rows[1].clone()], 1);
    assert_eq!(states(&keeping, &rows, 2), states(&plain, &rows, 2));
    assert_eq!(states(&model("llama").keeping_prefixes(folder.path(), "another"), &rows, 1), expected);
    assert_eq!(files().len(), 3);
    states(&keeping, &rows, 0); // no block: nothing to keep
    assert_eq!(files().len(), 3);
}

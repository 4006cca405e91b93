//! Losses, gradients, the optimiser: each against a reference.

use lm::{AdamW, AdamWConfig, Owner, Parameter, Schedule, Storage};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::common::{float32, golden};

#[derive(Deserialize)]
struct AdamWStep {
    step: usize,
    norm: f64,
    x: Vec<f32>,
}

#[test]
fn adamw_equals_torch_over_100_steps_and_resumes_exactly() {
    let golden: Vec<AdamWStep> = golden("adamw.json");
    float32();
    let config = AdamWConfig {
        learning_rate: 0.05,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        weight_decay: 0.1,
        betas: [0.9, 0.95],
        epsilon: 1e-8,
        max_grad_norm: 1.0,
    };
    let target = Tensor::from_slice(&[0.0f32, 1.0, 2.5, 0.5]);
    let scale = Tensor::from_slice(&[1.0f32, 10.0, 0.1, 3.0]);
    // User 1 of two has the parameter of the golden; user 0 is never there.
    let fresh = || {
        let start = Tensor::from_slice(&[9.0f32, 9.0, 9.0, 9.0, 1.0, -2.0, 3.0, 0.5]).view([2, 4]);
        let x = start.set_requires_grad(true);
        let parameter = Parameter { name: "x".into(), tensor: x.shallow_clone(), owner: Owner::PerUser };
        (x, AdamW::new(config.clone(), vec![parameter], 2.try_into().unwrap(), &Storage::memory()).unwrap())
    };
    let (mut x, mut optimizer) = fresh();
    for step in 0..100 {
        if step == 50 {
            // Through a file, into a new optimiser: a cold start would not follow the golden.
            let dir = tempfile::tempdir().unwrap();
            lm::write_tensors(&dir.path().join("o.safetensors"), &optimizer.state(), None).unwrap();
            (x, optimizer) = fresh();
            let mut state = lm::read_tensors(&dir.path().join("o.safetensors"), Device::Cpu, None).unwrap();
            optimizer.load_state(&mut state).unwrap();
        }
        let loss = ((x.get(1) - &target).square() * &scale).sum(Kind::Float);
        let gradients = lm::gradients(&loss, &[&x]).unwrap();
        let own = [gradients[0].narrow(0, 1, 1)]; // user 1 alone is present
        let norms = optimizer.step(&own, 0.0, &[(lm::UserIndex(1), config.rate(step, 100))], "test").unwrap();
        if let Some(want) = golden.iter().find(|g| g.step == step) {
            let norm = norms.users[0];
            assert!((norm - want.norm).abs() < 1e-4 * want.norm.max(1e-3), "{norm} {}", want.norm);
            let difference = (x.get(1) - Tensor::from_slice(&want.x)).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "step {step}: {difference}");
        }
    }
    assert_eq!(Vec::<f32>::try_from(x.get(0)).unwrap(), [9.0; 4], "an absent user is not touched");
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing_and_is_named() {
    float32();
    let x = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
    let parameter = Parameter { name: "x".into(), tensor: x.shallow_clone(), owner: Owner::Shared };
    let config = AdamWConfig {
        learning_rate: 1.0,
        schedule: Schedule::Linear,
        warmup_ratio: 0.0,
        weight_decay: 0.0,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        max_grad_norm: 1.0,
    };
    let mut optimizer = AdamW::new(config, vec![parameter], 1.try_into().unwrap(), &Storage::memory()).unwrap();
    // sqrt has an infinite slope at 0: the loss is finite, its gradient is not.
    let gradients = lm::gradients(&(&x - 1.0).abs().sqrt().sum(Kind::Float), &[&x]).unwrap();
    let error = optimizer.step(&gradients, 1.0, &[(lm::UserIndex(0), 1.0)], "reward, step 3").unwrap_err();
    assert_eq!(error.to_string(), "reward, step 3: the gradient of the shared parameters is not finite");
    assert_eq!(Vec::<f32>::try_from(&x).unwrap(), [1.0, 2.0]);
}

#[test]
fn schedules_take_their_textbook_values() {
    let config = |schedule, warmup_ratio| AdamWConfig {
        learning_rate: 1.0,
        schedule,
        warmup_ratio,
        weight_decay: 0.0,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        max_grad_norm: 1.0,
    };
    let rates = |c: AdamWConfig| [0, 1, 2, 6, 9].map(|s| (c.rate(s, 10) * 1e4).round() / 1e4);
    assert_eq!(rates(config(Schedule::Constant, 0.2)), [0.5, 1.0, 1.0, 1.0, 1.0]);
    assert_eq!(rates(config(Schedule::Linear, 0.2)), [0.5, 1.0, 1.0, 0.5, 0.125]);
    // Half a cosine over the eight steps behind the warm-up: 1, (1 + cos(pi / 2)) / 2, (1 + cos(7 pi / 8)) / 2.
    assert_eq!(rates(config(Schedule::Cosine, 0.2)), [0.5, 1.0, 1.0, 0.5, 0.0381]);
    // The third of three epochs starts at a third: P-ShareLoRA's 5e-5 to 1.67e-5.
    assert_eq!(rates(config(Schedule::LinearTail { from: 2.0 / 3.0 }, 0.0)), [0.3333, 0.3, 0.2667, 0.1333, 0.0333]);
}

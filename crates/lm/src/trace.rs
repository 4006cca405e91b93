//! One forward pass with gradients, and its backward pass: either with every block's activations kept, or with each block
//! computed a second time (Chen et al. 2016).

use device::Checked;
use problem::{Result, not_finite};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use crate::Lm;
use crate::adapters::RowFactors;
use crate::rows::Batch;

/// What a forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// Everything.
    Keep,
    /// Each block's input; the blocks are computed again (gradient checkpointing). A third more work, far less memory.
    Recompute,
}

/// A forward pass through the adapted blocks.
#[derive(Debug)]
pub struct Trace<'a> {
    lm: &'a Lm,
    /// What was run.
    pub batch: Batch,
    factors: RowFactors,
    /// Hidden states behind the last block, before the final norm, `[N, E]`.
    pub hidden: Tensor,
    inputs: Vec<Tensor>, // of each block, if they are to be computed again
}

impl<'a> Trace<'a> {
    /// Runs the blocks from the batch's first adapted one.
    pub fn new(lm: &'a Lm, batch: Batch, factors: RowFactors, activations: Activations) -> Self {
        let blocks = batch.blocks.clone();
        let x = batch.x.shallow_clone();
        let (hidden, inputs) = match activations {
            Activations::Keep => (lm.blocks(x, blocks, &lm.over(&batch.layout, Some(&factors), None)), vec![]),
            Activations::Recompute => no_grad(|| {
                let pass = lm.over(&batch.layout, Some(&factors), None);
                let (mut x, mut inputs) = (x, Vec::new());
                for block in blocks {
                    inputs.push(x.shallow_clone());
                    x = lm.blocks(x, block..block + 1, &pass);
                }
                (x, inputs)
            }),
        };
        let hidden = if activations == Activations::Recompute { hidden.set_requires_grad(true) } else { hidden };
        Self { lm, batch, factors, hidden, inputs }
    }

    /// Gradients of `loss` with respect to `parameters`: the bank's (in its order), then `others` that the loss reads
    /// directly.
    ///
    /// # Errors
    /// A loss that is not finite, named by `place`.
    pub fn backward(self, loss: &Tensor, bank: &[Tensor], others: &[Tensor], place: &str) -> Result<Vec<Tensor>> {
        if !loss.double_value(&[]).is_finite() {
            return Err(not_finite(place.to_owned(), "the loss"));
        }
        let all: Vec<&Tensor> = bank.iter().chain(others).collect();
        if self.inputs.is_empty() {
            return gradients(loss, &all);
        }
        let from_loss: Vec<&Tensor> = std::iter::once(&self.hidden).chain(others).collect();
        let mut direct = gradients(loss, &from_loss)?;
        let mut upstream = direct.remove(0);

        // Block by block from the last: again with a graph, then back through that block alone.
        let leaves = self.factors.leaves();
        let mut surrogate: Vec<Tensor> = Vec::new(); // sums whose gradient is what the gathered factors received
        for (n, input) in self.inputs.iter().enumerate().rev() {
            let block = self.batch.blocks.start + n;
            let x = input.detach().set_requires_grad(true);
            let pass = self.lm.over(&self.batch.layout, Some(&leaves), None);
            let y = self.lm.blocks(x.shallow_clone(), block..block + 1, &pass);
            let own = |l: &usize| self.lm.layers()[*l].block == block;
            let layers: Vec<usize> = (0..self.lm.layers().len()).filter(own).collect();
            let trained = leaves.of_layers(layers.iter().copied());
            let wanted: Vec<&Tensor> = std::iter::once(&x).chain(trained).collect();
            let mut given = gradients(&(&y * &upstream).sum(Kind::Float), &wanted)?;
            upstream = given.remove(0);
            let gathered = self.factors.of_layers(layers.into_iter());
            surrogate.extend(gathered.iter().zip(&given).map(|(f, g)| (*f * g).sum(Kind::Float)));
        }
        if bank.is_empty() {
            return Ok(direct);
        }
        let bank: Vec<&Tensor> = bank.iter().collect();
        let mut out = gradients(&Tensor::stack(&surrogate, 0).sum(Kind::Float), &bank)?;
        out.extend(direct);
        Ok(out)
    }
}

/// Gradients of a scalar.
pub fn gradients(loss: &Tensor, parameters: &[&Tensor]) -> Result<Vec<Tensor>> {
    Tensor::f_run_backward(&[loss], parameters, false, false).checked()
}

/// Adds one micro-batch's gradients to those of the others.
pub fn accumulate(sum: &mut Option<Vec<Tensor>>, gradients: Vec<Tensor>) {
    match sum {
        None => *sum = Some(gradients),
        Some(sum) => {
            for (total, gradient) in sum.iter_mut().zip(gradients) {
                *total += gradient;
            }
        }
    }
}

//! A frozen linear layer, or several that read the same input and are multiplied as one.

use tch::Tensor;

use crate::cpu::Packed;
use crate::pass::Pass;

/// One layer of a product.
#[derive(Debug)]
struct Part {
    /// Index among the model's layers; adapters go by it. The vocabulary projection has none.
    layer: Option<usize>,
    weight: Tensor, // [out, in]
    bias: Option<Tensor>,
}

/// `y = x W^T + b` for each of its parts, plus the adapter's part.
#[derive(Debug)]
pub(crate) struct Linear {
    parts: Vec<Part>,
    packed: Option<Packed>,
    bias: Option<Tensor>, // of all parts; only for packed products
    sizes: Vec<i64>,
}

impl Linear {
    /// A layer of one weight `[out, in]`.
    pub(crate) fn new(layer: Option<usize>, weight: Tensor, bias: Option<Tensor>) -> Self {
        Self::of(vec![Part { layer, weight, bias }])
    }

    /// Several layers of the same input as one product.
    pub(crate) fn together(layers: Vec<Self>) -> Self {
        Self::of(layers.into_iter().flat_map(|l| l.parts).collect())
    }

    fn of(parts: Vec<Part>) -> Self {
        let first = &parts[0].weight;
        let packed = crate::cpu::available(first.device(), first.kind()).then(Packed::default);
        let bias = parts.iter().any(|p| p.bias.is_some()).then(|| {
            let each: Vec<Tensor> = parts
                .iter()
                .map(|p| {
                    let zeros = || Tensor::zeros([p.weight.size()[0]], (p.weight.kind(), p.weight.device()));
                    p.bias.as_ref().map_or_else(zeros, Tensor::shallow_clone)
                })
                .collect();
            Tensor::cat(&each, 0)
        });
        let sizes = parts.iter().map(|p| p.weight.size()[0]).collect();
        Self { parts, packed, bias, sizes }
    }

    /// `[N, in]` to `[N, out]`, for a layer of one part.
    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass) -> Tensor {
        self.forward_all(x, pass).pop().expect("a layer has a part")
    }

    /// `[N, in]` to each part's `[N, out]`.
    pub(crate) fn forward_all(&self, x: &Tensor, pass: &Pass) -> Vec<Tensor> {
        let mut outputs = self.products(x);
        if let Some(adapter) = pass.adapter {
            let layers: Vec<Option<usize>> = self.parts.iter().map(|p| p.layer).collect();
            adapter.add(&layers, x, &mut outputs);
        }
        outputs
    }

    /// All parts side by side, `[N, out of all]`, where they are one product and no part is adapted.
    pub(crate) fn whole(&self, x: &Tensor, pass: &Pass) -> Option<Tensor> {
        let adapted = |a: &crate::RowFactors| self.parts.iter().any(|p| p.layer.is_some_and(|l| a.adapts(l)));
        let packed = self.packed.as_ref().filter(|_| !pass.adapter.is_some_and(adapted))?;
        Some(packed.product(x, || self.weight(), self.bias.as_ref()))
    }

    /// Without adapters.
    pub(crate) fn products(&self, x: &Tensor) -> Vec<Tensor> {
        match &self.packed {
            Some(packed) => {
                let y = packed.product(x, || self.weight(), self.bias.as_ref());
                if self.sizes.len() == 1 { vec![y] } else { y.split_with_sizes(&self.sizes, 1) }
            }
            None => self.parts.iter().map(|p| x.linear(&p.weight, p.bias.as_ref())).collect(),
        }
    }

    fn weight(&self) -> Tensor {
        match self.parts.as_slice() {
            [one] => one.weight.shallow_clone(),
            all => Tensor::cat(&all.iter().map(|p| &p.weight).collect::<Vec<_>>(), 0),
        }
    }

    /// The weight `[out, in]` of a layer of one part.
    pub(crate) fn plain_weight(&self) -> &Tensor {
        &self.parts[0].weight
    }
}

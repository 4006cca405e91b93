//! What votes count beside their users' other votes.

use std::collections::BTreeMap;

/// Each item's weight divided by the mean weight of its owner's items that count: those of a weight above 0. The mean is then 1 for every owner,
/// so that only the proportions of an owner's weights matter. A weight of 0 stays 0. Equal weights become exactly 1.
///
/// ```
/// assert_eq!(stats::relative_weights(&["ann", "ann", "bob", "ann"], &[0.2, 0.6, 7.0, 0.0]), [0.5, 1.5, 1.0, 0.0]);
/// ```
///
/// # Panics
/// If there are not as many owners as weights.
pub fn relative_weights<O: Ord + Copy>(owners: &[O], weights: &[f32]) -> Vec<f32> {
    assert_eq!(owners.len(), weights.len(), "an owner for each weight");
    let mut of_owner: BTreeMap<O, (f64, f64)> = BTreeMap::new();
    for (owner, weight) in owners.iter().zip(weights).filter(|(_, weight)| **weight > 0.0) {
        let (sum, count) = of_owner.entry(*owner).or_default();
        (*sum, *count) = (*sum + f64::from(*weight), *count + 1.0);
    }
    let relative = |(owner, weight): (&O, &f32)| match of_owner.get(owner) {
        Some((sum, count)) if *weight > 0.0 => (f64::from(*weight) / (sum / count)) as f32,
        _ => 0.0,
    };
    owners.iter().zip(weights).map(relative).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issue_23_a_factor_changes_nothing_and_equal_weights_are_exactly_1() {
        let owners = [1, 2, 1, 1, 2];
        let some = [0.1f32, 0.3, 0.5, 0.0, 0.3];
        let relative = relative_weights(&owners, &some);
        assert_eq!(relative, [0.1 / 0.3, 1.0, 0.5 / 0.3, 0.0, 1.0].map(|w: f64| w as f32));
        for factor in [0.25f32, 8.0] {
            assert_eq!(relative_weights(&owners, &some.map(|w| w * factor)), relative, "times {factor}");
        }
        // A mean that rounds would make equal weights unequal to 1.
        for weight in [1.0f32, 0.1, 1e-38, 3e38] {
            assert_eq!(relative_weights(&[0; 37], &[weight; 37]), [1.0; 37], "{weight}");
        }
        assert_eq!(relative_weights(&[0, 0], &[0.0, 0.0]), [0.0, 0.0]);
        assert!(relative_weights::<u8>(&[], &[]).is_empty());
    }
}

//! sampling for simulated raters, graded evaluation of policies (win rates, matrices, drift)

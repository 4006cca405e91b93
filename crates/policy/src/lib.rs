//! per-user DPO: losses as pure functions, separate readable loops

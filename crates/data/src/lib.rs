//! Parquet to votes, validation, leakage-safe splits

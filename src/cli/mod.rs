//! Arguments, wiring, output.

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line, the control socket, the log and the metrics.

mod alerts;
mod board;
mod command_line;
mod control;
mod control_refusals;
mod control_waits;
mod controlled;
mod core_dump;
mod crowded_operators;
mod doctor;
mod doctor_causes;
mod embedding;
mod lifecycle;
mod logging;
mod metrics_formats;
mod metrics_series;
mod metrics_text;
mod openapi;
mod operators_wait;
mod read_back;
mod reclaims;
mod sandbox;
mod service;
mod setup_errors;
mod signals;
mod start;
mod targets;
mod top;
mod who_set;

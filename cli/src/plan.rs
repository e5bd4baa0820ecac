//! `rwkv-edge plan`: the memory that a model will take, from its header.

use std::io::Write;

use anyhow::Result;
use clap::Args;
use rwkv_edge::{MemoryPlan, stdio};

use crate::args::ModelArgs;
use crate::json::{Object, array};
use crate::memory::Demand;

#[derive(Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Texts that are held at the same time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    sessions: u16,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &PlanArgs) -> Result<()> {
    let compute = &args.model.compute;
    let sessions = usize::from(args.sessions);
    let demand = Demand { sessions, ..Demand::new(compute.engine_options()) };
    compute.kernels.check_memory(args.model.path(), &demand)?;
    let plan = compute.kernels.plan(args.model.path(), &demand)?;
    let mut out = stdio::stdout();
    if args.json {
        let threads = demand.engine.thread_count();
        let object = Object::new().text("model", args.model.name()).raw("threads", threads);
        writeln!(out, "{}", json(object, &plan).end())?;
    } else {
        writeln!(out, "model             {}", args.model.name())?;
        write!(out, "{plan}")?;
        writeln!(
            out,
            "from an SD card   {:.1} s to read what the first token needs (computed, at 40 MB/s)",
            plan.sd_card_seconds()
        )?;
    }
    Ok(out.flush()?)
}

/// Adds the keys of a plan.
pub(crate) fn json(object: Object, plan: &MemoryPlan) -> Object {
    let parts = plan.parts().map(|part| {
        let part_of = Object::new().text("name", part.name).raw("bytes", part.bytes);
        part_of.raw("resident_bytes", part.resident).end()
    });
    object
        .raw("sessions", plan.sessions)
        .raw("buffers", array(parts))
        .raw("arena_bytes", plan.arena_bytes())
        .raw("state_bytes", plan.state_bytes)
        .raw("token_bytes", plan.token_bytes())
        .float("sd_card_seconds_computed", plan.sd_card_seconds())
        .raw("address_space_bytes", plan.address_space_bytes())
        .raw("resident_bytes", plan.resident_bytes())
}

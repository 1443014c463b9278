//! `varve show`: the views, on any epoch.

use clap::{Args, builder::PossibleValuesParser};
use varve_analyze::{
    engine::History,
    views::{self, Filter, VIEWS},
};

use crate::{
    context::Context,
    exit::{Failure, Status},
    output::Table,
    time::utc,
};

/// List what an epoch shows: processes, modules, mappings, symbols
#[derive(Args)]
#[command(after_help = help())]
pub(crate) struct Show {
    /// What to list
    #[arg(value_parser = PossibleValuesParser::new(VIEWS.iter().map(|view| view.name)))]
    view: String,
    /// Which epoch
    #[arg(long, default_value = "latest")]
    epoch: String,
    /// Only this process
    #[arg(long)]
    pid: Option<u32>,
}

fn help() -> String {
    let mut text = String::from("Views:\n");
    for view in VIEWS {
        text.push_str(&format!("  {:<14}{}\n", view.name, view.summary));
    }
    text + "\nExamples:\n  varve -r /srv/varve --vm web1 show pslist\n  varve -r /srv/varve --vm web1 show maps --pid 1 --epoch @2026-11-23T04:00Z"
}

impl Show {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let view = views::named(&self.view).ok_or_else(|| Failure::usage("no such view"))?;
        let archive = context.open()?;
        let vm = context.vm(&archive)?;
        let epoch = context.epoch(&archive, &vm, &self.epoch)?;
        let history = History::open(&archive, &vm)?;
        history.learn(epoch)?;
        let memory = history.memory(epoch)?;
        let guest = history.guest(&memory)?;
        let taken_at = utc(memory.record().taken_at_ns);
        context.remark(format_args!("{vm}, epoch {epoch}, taken {taken_at}"));
        let shown = (view.run)(&guest, &Filter { pid: self.pid }).map_err(Failure::new)?;
        let mut out = context.output();
        if out.is_json() {
            for record in shown.records() {
                out.line(&record)?;
            }
        } else {
            let headings: Vec<&str> = shown.columns.iter().map(|column| column.name).collect();
            let mut table = Table::new(&headings);
            for row in &shown.rows {
                table.row(row.iter().map(ToString::to_string));
            }
            out.table(&table)?;
        }
        out.flush()?;
        for fault in &shown.faults {
            context.remark(format_args!("{}: {fault}", self.view));
        }
        if shown.complete {
            return Ok(Status::Nothing);
        }
        context.remark("the list is incomplete");
        Ok(Status::Incomplete)
    }
}

//! The statements that write events, for the transactions of other tables.
//!
//! Each event is copied from the row it is about, under the condition under which that row is
//! changed. Those that stand before the change see the state from which it comes.

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Condition, Expr, Query, SelectStatement};
use sea_orm::{DbBackend, Statement, StatementBuilder};

use super::EventKind;
use super::row::{Column, Entity};
use crate::domain::lifecycle::SandboxState;
use crate::entity::columns::micros;
use crate::entity::snapshots::Snapshot;
use crate::entity::{sandboxes, snapshots};

/// How events of one moment are written.
#[derive(Debug, Clone, Copy)]
pub(in crate::entity) struct Recording {
    pub backend: DbBackend,
    pub at: DateTime<Utc>,
}

impl Recording {
    /// The sandboxes that `which` names come to `state` from the one they are in.
    pub fn change(
        self,
        state: SandboxState,
        reason: Option<&str>,
        which: impl Into<Condition>,
    ) -> Statement {
        let previous = Expr::col((sandboxes::Entity, sandboxes::Column::State));
        self.of_sandboxes(state, previous, reason, which.into())
    }

    /// The sandboxes that `which` names have come to be, in `state`.
    pub fn beginning(self, state: SandboxState, which: impl Into<Condition>) -> Statement {
        self.of_sandboxes(state, Expr::value(None::<String>), None, which.into())
    }

    fn of_sandboxes(
        self,
        state: SandboxState,
        previous: Expr,
        reason: Option<&str>,
        which: Condition,
    ) -> Statement {
        let columns = [
            (Column::SandboxId, Expr::col((sandboxes::Entity, sandboxes::Column::Id))),
            (Column::State, Expr::value(state.as_str())),
            (Column::Previous, previous),
            (Column::Reason, Expr::value(reason)),
        ];
        let mut from = Query::select();
        from.from(sandboxes::Entity).cond_where(which);
        self.insert(EventKind::SandboxState, columns, from)
    }

    /// The snapshots that `which` names are about to go.
    pub fn snapshots_deleted(self, which: impl Into<Condition>) -> Statement {
        let column = |column| Expr::col((snapshots::Entity, column));
        let columns = [
            (Column::Snapshot, column(snapshots::Column::Name)),
            (Column::SandboxId, column(snapshots::Column::SandboxId)),
        ];
        let mut from = Query::select();
        from.from(snapshots::Entity).cond_where(which.into());
        self.insert(EventKind::SnapshotDeleted, columns, from)
    }

    /// A snapshot is about to be recorded, unless there is one that `known` names.
    pub fn snapshot_created(self, snapshot: &Snapshot, known: impl Into<Condition>) -> Statement {
        let mut rows = Query::select();
        rows.expr(Expr::value(1)).from(snapshots::Entity).cond_where(known.into());
        let mut from = Query::select();
        from.and_where(Expr::not_exists(rows));
        let columns = [
            (Column::Snapshot, Expr::value(snapshot.name.as_str())),
            (Column::SandboxId, Expr::value(snapshot.sandbox_id.as_str())),
        ];
        self.insert(EventKind::SnapshotCreated, columns, from)
    }

    /// A snapshot is about to be recorded in the place of the one that `replaced` names.
    pub fn snapshot_replaced(
        self,
        snapshot: &Snapshot,
        replaced: impl Into<Condition>,
    ) -> Statement {
        let columns = [
            (Column::Snapshot, Expr::value(snapshot.name.as_str())),
            (Column::SandboxId, Expr::value(snapshot.sandbox_id.as_str())),
        ];
        let mut from = Query::select();
        from.from(snapshots::Entity).cond_where(replaced.into());
        self.insert(EventKind::SnapshotCreated, columns, from)
    }

    fn insert<const N: usize>(
        self,
        kind: EventKind,
        columns: [(Column, Expr); N],
        mut from: SelectStatement,
    ) -> Statement {
        let always = [
            (Column::At, Expr::value(micros(self.at))),
            (Column::Kind, Expr::value(kind.as_str())),
        ];
        let mut names = Vec::new();
        for (name, value) in always.into_iter().chain(columns) {
            names.push(name);
            from.expr(value);
        }
        let mut insert = Query::insert();
        insert.into_table(Entity).columns(names);
        insert.select_from(from).expect("as many values as columns");
        StatementBuilder::build(&insert, &self.backend)
    }
}

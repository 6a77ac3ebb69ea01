"""The list of commands, apart from the commands: --help shows it without importing them."""

from __future__ import annotations

# Group, then command, then the module of `commands` that registers it and its help in short.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Set up": {
        "demo": (
            "demo",
            "Play a working day of a small company on an embedded PostgreSQL and print its audit"
            " trail.",
        ),
        "migrate": (
            "migrate",
            "Install the audit schema in a database, or bring it to the newest version.",
        ),
        "attach": (
            "attach",
            "Record every change of a table from now on; for an attached table, change its"
            " settings.",
        ),
        "detach": ("attach", "Stop recording a table. Its events stay in the log."),
        "status": (
            "attach",
            "Show the attached tables, the number of events, the log's partitions and its readers.",
        ),
        "doctor": (
            "attach",
            "Check that everything is still recorded; exit code 1 if there is an error.",
        ),
        "coverage": (
            "coverage",
            "List what is not recorded as it should be, unless a row of pgaudit_wf.waiver says"
            " why.",
        ),
        "limits": ("limits", "Limit how many rows of a kind each organization may have."),
    },
    "Read and undo": {
        "log": ("trail", "Show who did what, newest first; all filters must match."),
        "api-keys": (
            "trail",
            "Show the history of each API key, including revoked and deleted ones.",
        ),
        "row": (
            "states",
            "Show a row as of a moment, rebuilt from the log; exit code 1 if it did not exist.",
        ),
        "row-history": (
            "states",
            "Show every state that a row had, oldest first, with who made it and in which event.",
        ),
        "table": (
            "states",
            "Print a whole table as of a moment, rebuilt from the log: one JSON object per line.",
        ),
        "changes": ("states", "Show which rows of a table differ between two moments, and how."),
        "undo": (
            "undo",
            "Put rows back as they were before an event, a request, a transaction, or all that one"
            " did.",
        ),
        "export": (
            "export",
            "Write the trail to a file for a spreadsheet, a program or a SIEM, newest first.",
        ),
        "serve": ("serve", "Serve the pages on this machine, at the address that is printed."),
    },
    "Workflows": {
        "attach-workflow": (
            "workflow",
            "Record a table that holds workflows, and keep a version of each meaningful save.",
        ),
        "attach-execution": (
            "workflow",
            "Stamp every run inserted into a table with its credential and definition,"
            " permanently.",
        ),
        "backfill": (
            "workflow",
            "Create a first version of workflows that existed before their table was attached.",
        ),
        "workflows": (
            "versions",
            "List the workflows that have versions, the last changed first, with their ids.",
        ),
        "history": (
            "versions",
            "Show a workflow's versions, newest first: who saved each, with what, and what"
            " changed.",
        ),
        "diff": (
            "versions",
            "Show what changed between two versions: + added, - removed, ~ changed, every value in"
            " full.",
        ),
        "show": ("versions", "Show a version in full, even of a deleted workflow."),
        "validate": (
            "versions",
            "Say what keeps a version from being enabled, listed or run; exit code 1 if anything"
            " does.",
        ),
        "restore": (
            "versions",
            "Restore a version: nodes, connections, name and description; everything else stays.",
        ),
        "workflow": (
            "lifecycle",
            "Publish, export or copy a version, or put a deleted workflow back.",
        ),
        "usage": (
            "versions",
            "Show which versions had a definition, which runs executed it, and who was"
            " responsible.",
        ),
        "execution": (
            "versions",
            "Show which credential started a run and which definition it executed.",
        ),
    },
    "Keep it running": {
        "run": (
            "run",
            "Run jobs in one process: alerts, seal, maintain and keys, and stream where it is"
            " asked for.",
        ),
        "alerts": (
            "alerts",
            "Notify people and programs of events: the worker, its rules, and its deliveries.",
        ),
        "keys": (
            "keys",
            "Watch API keys: events when one expires, lies unused, appears elsewhere or was"
            " leaked.",
        ),
        "stream": (
            "stream",
            "Send the log to other systems while it happens, until SIGTERM or Ctrl-C.",
        ),
        "hub": (
            "hub",
            "Bring the logs of many databases (nodes) into one: the hub, which -d names.",
        ),
        "maintain": (
            "maintain",
            "Create future partitions, archive and prune events past their retention, prune"
            " versions.",
        ),
        "spool": (
            "spool",
            "Record failed and denied attempts that could not reach the database when they were"
            " made.",
        ),
        "erase": (
            "erase",
            "Permanently replace an actor's name, e-mail, address and user agent by a pseudonym.",
        ),
    },
    "Evidence": {
        "keygen": (
            "integrity",
            "Create the key that signs checkpoints, and print the public key.",
        ),
        "seal": (
            "integrity",
            "Append new events and versions to the tree, and sign a checkpoint.",
        ),
        "verify": (
            "integrity",
            "Check that nothing sealed was altered, removed, inserted or reordered.",
        ),
        "prove": (
            "integrity",
            "Print a proof that an event is in the log; `check` verifies it without a database.",
        ),
        "check": (
            "integrity",
            "Check a proof, of an event or of consistency, or a bundle, without a database.",
        ),
        "consistency": (
            "integrity",
            "Print a proof that the log of one checkpoint continues that of an older one.",
        ),
        "bundle": (
            "integrity",
            "Write a zip file by which an auditor can tell that nothing of an organization was left"
            " out.",
        ),
        "checkpoint": ("integrity", "Show, push and co-sign checkpoints."),
        "reconcile": (
            "reconcile",
            "Compare the rows of attached tables with what the log says of them.",
        ),
    },
}

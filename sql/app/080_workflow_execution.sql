-- One run of a workflow. No foreign keys: a run outlives the workflow, the key and the people
-- behind it,
-- and must still say which of them it was.

create table public.workflow_execution (
    id uuid primary key default gen_random_uuid(),
    workflow_id uuid not null,
    org_id text,
    user_id text,
    api_key_id text,
    status text not null default 'running'
        check (status in ('pending', 'running', 'succeeded', 'failed', 'canceled')),
    error text,
    triggered_by_credential_type text
        check (
            triggered_by_credential_type in
            ('webhook_key', 'org_api_key', 'oauth', 'session', 'internal')
        ),
    triggered_by_credential_label text,
    executed_workflow_hash text check (executed_workflow_hash ~ '^[0-9a-f]{64}$'),
    started_at timestamptz not null default now(),
    finished_at timestamptz,
    check (finished_at >= started_at)
);

create index workflow_execution_workflow_idx on public.workflow_execution (workflow_id, started_at);
create index workflow_execution_org_idx on public.workflow_execution (org_id, started_at);
create index workflow_execution_hash_idx on public.workflow_execution (executed_workflow_hash);

comment on table public.workflow_execution is
    'A run of a workflow, with the credential and the definition behind it. Not in the audit trail '
    'itself: it is a record already.';
comment on column public.workflow_execution.id is
    'Made by the database if the application gives none.';
comment on column public.workflow_execution.workflow_id is
    'The workflow that ran; it may be deleted since.';
comment on column public.workflow_execution.org_id is
    'The org it ran for; it may be deleted since.';
comment on column public.workflow_execution.user_id is
    'Who started it, if a person did; the account may be deleted since.';
comment on column public.workflow_execution.api_key_id is
    'The key that started it, if one did; it may be deleted since.';
comment on column public.workflow_execution.status is
    'pending, running, succeeded, failed or canceled.';
comment on column public.workflow_execution.error is 'Why it failed, in words. Null: it did not.';
comment on column public.workflow_execution.triggered_by_credential_type is
    'What kind of credential started it: webhook_key, org_api_key, oauth, session or internal.';
comment on column public.workflow_execution.triggered_by_credential_label is
    'That credential''s handle, which is not secret, such as kh_9f2….';
comment on column public.workflow_execution.executed_workflow_hash is
    'Hash of the definition that ran: lower-case hex SHA-256, equal to content_hash of its version '
    'in the history.';
comment on column public.workflow_execution.started_at is 'When the run began.';
comment on column public.workflow_execution.finished_at is 'When the run ended. Null: it has not.';

-- Streams: other systems that get the log while it happens.
--
-- As with alerts, nothing here touches the write path: a worker (pgaudit-wf stream) follows the log as one reader for each destination,
-- "stream.<name>". It claims a batch for a while (_claim_stream), sends it without a transaction being open, and then moves the reader
-- on (_settle_stream). What was sent but not settled is sent again, with the same ids.

create table pgaudit_wf.stream_destination (
    name text primary key,
    kind text not null,
    url text not null,
    org_id text,
    action_patterns text[] not null default '{*}',
    format text not null default 'ocsf',
    secret text,
    settings jsonb not null default '{}',
    max_value integer not null default 262144,
    paused boolean not null default false,
    created_at timestamptz not null default now(),
    constraint stream_destination_name check (name ~ '^[a-z][a-z0-9_-]{0,49}$'),
    constraint stream_destination_kind check (kind in ('splunk', 'datadog', 'webhook', 'syslog', 'files')),
    constraint stream_destination_url check (
        length(url) <= 2000 and case kind
            when 'files' then url ~ '^[a-z][a-z0-9]*://[^[:space:][:cntrl:]@]+$' and strpos(url, '::') = 0
            when 'syslog' then url ~ '^tls://[^[:space:][:cntrl:]@/]+:[0-9]{1,5}$'
            else url ~ e'^(https://|http://(localhost|127\\.0\\.0\\.1|\\[::1\\])[:/])[^[:space:][:cntrl:]@]+$'
        end),
    constraint stream_destination_patterns check (
        -- Not "between": a restore would print it differently.
        cardinality(action_patterns) >= 1 and cardinality(action_patterns) <= 100 and array_position(action_patterns, null) is null),
    constraint stream_destination_format check (format in ('ocsf', 'ndjson', 'cef') or format = 'parquet' and kind = 'files'),
    -- Shorter than a key that somebody pastes here.
    constraint stream_destination_secret check (secret ~ '^[a-z][a-z0-9_]{0,29}$'),
    constraint stream_destination_settings check (jsonb_typeof(settings) = 'object' and length(settings::text) <= 10000),
    constraint stream_destination_max_value check (max_value between 100 and 16777216)
);
comment on table pgaudit_wf.stream_destination is
    'Systems that pgaudit-wf stream sends events to. A new one gets what is recorded from then on; _backfill_stream() goes further back.';
comment on column pgaudit_wf.stream_destination.name is 'Name of the destination; its reader is "stream." and the name.';
comment on column pgaudit_wf.stream_destination.kind is
    'splunk (HTTP Event Collector), datadog (log intake), webhook, syslog (RFC 5424 over TLS) or files (a directory or object storage).';
comment on column pgaudit_wf.stream_destination.url is
    'Where to send: https://… (http on loopback only), tls://host:port for syslog, a URL as fsspec takes it for files; '
    'never with a user name or secret in it.';
comment on column pgaudit_wf.stream_destination.org_id is 'Only events of this organization; null: all.';
comment on column pgaudit_wf.stream_destination.action_patterns is 'Only these actions; * stands for anything: {api_key.*,session.*}.';
comment on column pgaudit_wf.stream_destination.format is 'ocsf, ndjson, cef or, for files, parquet.';
comment on column pgaudit_wf.stream_destination.secret is
    'Name of the secret, which the worker''s environment has: PGAUDIT_WF_STREAM_SECRET_<NAME>, or …_FILE with a path; null: none.';
comment on column pgaudit_wf.stream_destination.settings is 'What the kind takes besides: see docs/how-to/stream.md.';
comment on column pgaudit_wf.stream_destination.max_value is
    'A diff or metadata of more bytes than this is sent as its SHA-256 and length, as in an export.';
comment on column pgaudit_wf.stream_destination.paused is 'True stops it; it goes on where it was.';
comment on column pgaudit_wf.stream_destination.created_at is 'When it was added.';

create table pgaudit_wf.stream_state (
    destination text primary key references pgaudit_wf.stream_destination on update cascade on delete cascade,
    claim bigint not null default 0,
    lease_until timestamptz,
    due_at timestamptz not null default now(),
    attempts integer not null default 0,
    last_error text,
    sent bigint not null default 0,
    last_sent_at timestamptz
);
comment on table pgaudit_wf.stream_state is 'How each destination of a stream is doing. Its place in the log is in reader.';
comment on column pgaudit_wf.stream_state.destination is 'The destination.';
comment on column pgaudit_wf.stream_state.claim is 'Number of the last claim: who holds an older one was overtaken.';
comment on column pgaudit_wf.stream_state.lease_until is 'Until when a worker has it; null: none has.';
comment on column pgaudit_wf.stream_state.due_at is 'When it is to be served, at the earliest.';
comment on column pgaudit_wf.stream_state.attempts is 'How often in a row sending has failed.';
comment on column pgaudit_wf.stream_state.last_error is
    'Why it failed last: kind and code, never what the receiver wrote; null once it works.';
comment on column pgaudit_wf.stream_state.sent is 'How many events it has accepted, repeats included.';
comment on column pgaudit_wf.stream_state.last_sent_at is 'When it last accepted something.';

create table pgaudit_wf.stream_dead_letter (
    destination text not null references pgaudit_wf.stream_destination on update cascade on delete cascade,
    event_tx_id bigint not null,
    event_id bigint not null,
    event_occurred_at timestamptz not null,
    action text not null,
    problem text not null,
    put_aside_at timestamptz not null default now(),
    primary key (destination, event_tx_id, event_id, event_occurred_at)
);
comment on table pgaudit_wf.stream_dead_letter is
    'Events that a destination refused, while it accepted others. They are still in the log; _backfill_stream() sends them again.';
comment on column pgaudit_wf.stream_dead_letter.destination is 'The destination.';
comment on column pgaudit_wf.stream_dead_letter.event_tx_id is 'Transaction of the event.';
comment on column pgaudit_wf.stream_dead_letter.event_id is 'The event.';
comment on column pgaudit_wf.stream_dead_letter.event_occurred_at is 'When it happened.';
comment on column pgaudit_wf.stream_dead_letter.action is 'What happened.';
comment on column pgaudit_wf.stream_dead_letter.problem is 'Why it was refused: kind and code.';
comment on column pgaudit_wf.stream_dead_letter.put_aside_at is 'When it was put aside.';

create function pgaudit_wf._follow_destination() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        insert into pgaudit_wf.reader (name, cursor) values ('stream.' || new.name, pgaudit_wf._log_end());
        insert into pgaudit_wf.stream_state (destination) values (new.name);
    elsif tg_op = 'UPDATE' then
        update pgaudit_wf.reader as r set name = 'stream.' || new.name where r.name = 'stream.' || old.name and old.name <> new.name;
    else
        delete from pgaudit_wf.reader as r where r.name = 'stream.' || old.name;
    end if;
    return null;
end
$$;
comment on function pgaudit_wf._follow_destination() is 'Trigger of stream_destination: keeps its reader and its state.';

create trigger follow_destination after insert or update of name or delete on pgaudit_wf.stream_destination
    for each row execute function pgaudit_wf._follow_destination();

create view pgaudit_wf.stream_list with (security_invoker = true) as
select
    d.name,
    d.kind,
    d.url,
    d.org_id,
    d.action_patterns,
    d.format,
    d.secret,
    d.settings,
    d.paused,
    s.due_at,
    s.lease_until,
    s.attempts,
    s.last_error,
    s.sent,
    s.last_sent_at,
    (select count(*) from pgaudit_wf.stream_dead_letter as l where l.destination = d.name) as dead_letters
from pgaudit_wf.stream_destination as d
join pgaudit_wf.stream_state as s on s.destination = d.name;
comment on view pgaudit_wf.stream_list is 'The destinations of streams and how they are doing, as pgaudit-wf stream list shows them.';
comment on column pgaudit_wf.stream_list.name is 'Name of the destination.';
comment on column pgaudit_wf.stream_list.kind is 'splunk, datadog, webhook, syslog or files.';
comment on column pgaudit_wf.stream_list.url is 'Where events are sent.';
comment on column pgaudit_wf.stream_list.org_id is 'Only events of this organization; null: all.';
comment on column pgaudit_wf.stream_list.action_patterns is 'Only these actions; * stands for anything.';
comment on column pgaudit_wf.stream_list.format is 'ocsf, ndjson, cef or parquet.';
comment on column pgaudit_wf.stream_list.secret is 'Name of its secret, which only the worker has.';
comment on column pgaudit_wf.stream_list.settings is 'What the kind takes besides.';
comment on column pgaudit_wf.stream_list.paused is 'Whether it is stopped.';
comment on column pgaudit_wf.stream_list.due_at is 'When it is to be served, at the earliest.';
comment on column pgaudit_wf.stream_list.lease_until is 'Until when a worker has it.';
comment on column pgaudit_wf.stream_list.attempts is 'How often in a row sending has failed.';
comment on column pgaudit_wf.stream_list.last_error is 'Why it failed last; null while it works.';
comment on column pgaudit_wf.stream_list.sent is 'How many events it has accepted, repeats included.';
comment on column pgaudit_wf.stream_list.last_sent_at is 'When it last accepted something.';
comment on column pgaudit_wf.stream_list.dead_letters is 'How many events it refused.';

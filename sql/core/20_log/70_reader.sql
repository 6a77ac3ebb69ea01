-- Named readers: jobs that follow the log keep their cursor here.

create table pgaudit_wf.reader (
    name text primary key,
    cursor text,
    events bigint not null default 0,
    updated_at timestamptz not null default now(),
    constraint reader_name check (name ~ '^[a-z][a-z0-9_.-]{0,62}$')
);
comment on table pgaudit_wf.reader is 'Jobs that follow the log (alerts, seal, …), each with its cursor.';
comment on column pgaudit_wf.reader.name is 'Name of the job.';
comment on column pgaudit_wf.reader.cursor is
    'Cursor of the last event it has processed, as read_log() returned it; null: it is at the beginning.';
comment on column pgaudit_wf.reader.events is 'Number of events it has processed.';
comment on column pgaudit_wf.reader.updated_at is 'When it last moved on.';

create function pgaudit_wf.read_as(reader_name text, max_events integer default 1000)
returns table (cursor text, event pgaudit_wf.security_audit_log)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    reader pgaudit_wf.reader;
begin
    insert into pgaudit_wf.reader (name) values (read_as.reader_name) on conflict on constraint reader_pkey do nothing;
    -- The row lock serializes workers: a second one of the same name waits here until the first has committed.
    select r.* into reader from pgaudit_wf.reader as r where r.name = read_as.reader_name for update;
    return query select l.cursor, l.event from pgaudit_wf.read_log(reader.cursor, read_as.max_events) as l;
end
$$;
comment on function pgaudit_wf.read_as(text, integer) is
    'The next events for a named reader, as read_log() returns them. '
    'Process them and call advance_reader() in the same transaction: '
    'then none is skipped or processed twice, however many workers there are and whenever one is killed.';

create function pgaudit_wf.advance_reader(reader_name text, cursor text, events bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgaudit_wf.reader as r
    set cursor = advance_reader.cursor, events = r.events + advance_reader.events, updated_at = now()
    where r.name = advance_reader.reader_name;
    if not found then
        raise exception 'there is no reader "%"', advance_reader.reader_name
            using errcode = 'PA008', hint = 'Call pgaudit_wf.read_as() first.';
    end if;
    perform pgaudit_wf._note_generation();
end
$$;
comment on function pgaudit_wf.advance_reader(text, text, bigint) is
    'Saves a reader''s progress: the cursor of the last event that it processed, and how many events those were. '
    'Raises PA008 for an unknown reader.';

create function pgaudit_wf.reader_lag(reader_name text) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    reached text := (select r.cursor from pgaudit_wf.reader as r where r.name = reader_lag.reader_name);
begin
    return (select count(*) from pgaudit_wf.read_log(reached, 1000000));
end
$$;
comment on function pgaudit_wf.reader_lag(text) is 'How many events a reader is behind, counted up to 1,000,000.';

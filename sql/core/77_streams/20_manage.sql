-- What the commands do: add, pause, resume, backfill and remove a destination.

create function pgaudit_wf._check_stream(destination text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from pgaudit_wf.stream_destination as d where d.name = _check_stream.destination) then
        raise exception 'there is no destination "%"', _check_stream.destination
            using errcode = 'PA008', hint = 'pgaudit-wf stream list shows them.';
    end if;
end
$$;
comment on function pgaudit_wf._check_stream(text) is 'Raises PA008 unless there is such a destination.';

create function pgaudit_wf._cursor_before(since timestamptz) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- Along the primary keys, as read_log() goes.
set enable_sort = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
    generation record;
    first_tx bigint;
begin
    for generation in select g.* from pgaudit_wf.log_generations() as g order by g.first_id loop
        select l.tx_id into first_tx from pgaudit_wf.security_audit_log as l
        where l.occurred_at >= _cursor_before.since
            and l.id between generation.first_id and coalesce(generation.last_id, 9223372036854775807)
        order by l.tx_id, l.id limit 1;
        continue when first_tx is null;
        if generation.last_id is null then
            -- What is still running may have recorded something in that time, which nobody sees yet.
            first_tx := least(first_tx, pg_snapshot_xmin(pg_current_snapshot())::text::bigint);
        end if;
        return format('%s/%s/%s/0/%s', generation.system_identifier, generation.first_id, first_tx,
            coalesce(extract(epoch from pgaudit_wf._last_time(generation.first_id, first_tx)), 0.000000));
    end loop;
    return pgaudit_wf._log_end();
end
$$;
comment on function pgaudit_wf._cursor_before(timestamptz) is
    'Cursor after which read_log() returns everything that was recorded from that time on, and perhaps some of what was before.';

create function pgaudit_wf._backfill_stream(destination text, since timestamptz) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgaudit_wf._check_stream(_backfill_stream.destination);
    -- First the claim, so that a worker that is sending cannot move the reader any more.
    update pgaudit_wf.stream_state as s
    set claim = s.claim + 1, lease_until = null, due_at = now(), attempts = 0, last_error = null
    where s.destination = _backfill_stream.destination;
    update pgaudit_wf.reader as r
    set cursor = case when _backfill_stream.since is not null then pgaudit_wf._cursor_before(_backfill_stream.since) end,
        updated_at = now()
    where r.name = 'stream.' || _backfill_stream.destination;
    delete from pgaudit_wf.stream_dead_letter as l
    where l.destination = _backfill_stream.destination
        and l.event_occurred_at >= coalesce(_backfill_stream.since, '-infinity');
end
$$;
comment on function pgaudit_wf._backfill_stream(text, timestamptz) is
    'Sends a destination again what was recorded from a time on (null: everything), events that it refused included. '
    'Raises PA008 if there is no such destination.';

create function pgaudit_wf._add_stream(
    name text, kind text, url text, org_id text, action_patterns text[], format text, secret text, settings jsonb, max_value integer,
    since timestamptz
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into pgaudit_wf.stream_destination (name, kind, url, org_id, action_patterns, format, secret, settings, max_value)
    values (_add_stream.name, _add_stream.kind, _add_stream.url, _add_stream.org_id, coalesce(_add_stream.action_patterns, '{*}'),
        _add_stream.format, _add_stream.secret, _add_stream.settings, _add_stream.max_value);
    if _add_stream.since is not null then
        perform pgaudit_wf._backfill_stream(_add_stream.name, _add_stream.since);
    end if;
exception
    when check_violation or unique_violation then
        raise exception 'the destination was not added: %', sqlerrm
            using errcode = 'PA008', hint = E'\\d+ pgaudit_wf.stream_destination says what each column takes.';
end
$$;
comment on function pgaudit_wf._add_stream(text, text, text, text, text[], text, text, jsonb, integer, timestamptz) is
    'Adds a destination, which gets what is recorded from since (null: from now) on. Raises PA008 if something about it is not valid.';

create function pgaudit_wf._pause_stream(destination text, paused boolean) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgaudit_wf._check_stream(_pause_stream.destination);
    update pgaudit_wf.stream_destination as d set paused = _pause_stream.paused where d.name = _pause_stream.destination;
    -- Whoever resumes a destination has mended it, and need not wait for the next attempt.
    update pgaudit_wf.stream_state as s set due_at = now()
    where s.destination = _pause_stream.destination and not _pause_stream.paused;
end
$$;
comment on function pgaudit_wf._pause_stream(text, boolean) is
    'Stops a destination, or lets it go on where it was, at once. Raises PA008 if there is no such destination.';

create function pgaudit_wf._remove_stream(destination text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgaudit_wf._check_stream(_remove_stream.destination);
    delete from pgaudit_wf.stream_destination as d where d.name = _remove_stream.destination;
end
$$;
comment on function pgaudit_wf._remove_stream(text) is
    'Removes a destination with its place in the log. Raises PA008 if there is no such destination.';

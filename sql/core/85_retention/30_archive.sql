-- Which months of the log are archived in files, and where.

create table pgaudit_wf.archive (
    id bigint generated always as identity primary key,
    partition_name text not null,
    from_time timestamptz not null,
    to_time timestamptz not null,
    events bigint not null,
    live_events bigint not null,
    first_id bigint,
    last_id bigint,
    url text,
    sha256 text,
    manifest jsonb,
    archived_at timestamptz not null default now(),
    read_back_at timestamptz,
    pruned_at timestamptz,
    event_id bigint,
    leaves_digest text,
    constraint archive_file check ((events > 0) = (url is not null and sha256 is not null and manifest is not null)),
    constraint archive_sha256 check (sha256 ~ '^[0-9a-f]{64}$'),
    constraint archive_live_events check (live_events between 0 and events),
    constraint archive_window check (pruned_at >= pgaudit_wf._kept_until(to_time, 30))
);
comment on table pgaudit_wf.archive is
    'Months of the log that were written to files: written by record_archive(), _confirm_archive(), prune() and _replace_archive() only.';
comment on column pgaudit_wf.archive.id is 'Number of the archive; the newest of a month is the one that covers it.';
comment on column pgaudit_wf.archive.partition_name is 'The partition.';
comment on column pgaudit_wf.archive.from_time is 'Start of its month.';
comment on column pgaudit_wf.archive.to_time is 'End of its month, exclusive.';
comment on column pgaudit_wf.archive.events is 'Events in the file.';
comment on column pgaudit_wf.archive.live_events is
    'How many of them are still in the database: all until the month is pruned, then those under a longer policy.';
comment on column pgaudit_wf.archive.first_id is 'Lowest id of an event in it.';
comment on column pgaudit_wf.archive.last_id is 'Highest id of an event in it.';
comment on column pgaudit_wf.archive.url is
    'Where the Parquet file is: a path, or a URL as fsspec takes it; null for an empty month, which has none.';
comment on column pgaudit_wf.archive.sha256 is 'SHA-256 of the file, in hex.';
comment on column pgaudit_wf.archive.manifest is 'The manifest, as stored next to the file.';
comment on column pgaudit_wf.archive.archived_at is 'When it was archived.';
comment on column pgaudit_wf.archive.read_back_at is
    'When the file was last read back from its URL and found to hold the live events of its month; '
    'null: not since an erasure rewrote it, so prune() refuses.';
comment on column pgaudit_wf.archive.pruned_at is 'When its month was last pruned.';
comment on column pgaudit_wf.archive.event_id is 'The event audit.archived that says so in the trail; null for an empty month.';
comment on column pgaudit_wf.archive.leaves_digest is
    'Digest of the month''s sealed events, as in that event; null if the log was not sealed then.';
create index archive_partition on pgaudit_wf.archive (partition_name, id);

-- What was archived is a fact; only how much of it is still live, and what an erasure rewrote, may change.
create trigger append_only before delete or truncate on pgaudit_wf.archive
    for each statement execute function pgaudit_wf._refuse_change();
create trigger append_only_row
    before update of id, partition_name, from_time, to_time, events, first_id, last_id, archived_at on pgaudit_wf.archive
    for each statement execute function pgaudit_wf._refuse_change();
alter table pgaudit_wf.archive enable always trigger append_only, enable always trigger append_only_row;

create function pgaudit_wf._archived_events(partition_name text) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- An empty month has nothing to archive.
    return coalesce((
        select a.live_events from pgaudit_wf.archive as a
        where a.partition_name = _archived_events.partition_name
            -- What was archived before sealing began must be archived again, so that its pruning can be verified.
            and (a.leaves_digest is not null or not pgaudit_wf._is_sealed())
        order by a.id desc limit 1), 0);
end
$$;
comment on function pgaudit_wf._archived_events(text) is
    'How many of a month''s live events its newest archive covers; as the log only grows, it covers all if it is as many as there are.';

create function pgaudit_wf.record_archive(partition_name text, url text, sha256 text, manifest jsonb) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    month record;
    found_events bigint;
    lowest bigint;
    highest bigint;
    unsealed bigint;
    sealed record;
    archive_id bigint;
    event_id constant bigint := pgaudit_wf._next_event_id();
begin
    select * into month from pgaudit_wf._month_of(record_archive.partition_name);
    execute format('select count(*), min(id), max(id) from only %s', month.relation) into found_events, lowest, highest;
    if found_events = 0
        or found_events is distinct from (record_archive.manifest ->> 'events')::bigint
        or lowest is distinct from (record_archive.manifest ->> 'first_id')::bigint
        or highest is distinct from (record_archive.manifest ->> 'last_id')::bigint then
        raise exception 'the manifest does not match %: it lists % events with ids from % to %, but there are % from % to %',
            record_archive.partition_name,
            record_archive.manifest ->> 'events', record_archive.manifest ->> 'first_id', record_archive.manifest ->> 'last_id',
            found_events, lowest, highest
            using errcode = 'PA350', hint = 'Archive the partition again.';
    end if;
    if pgaudit_wf._is_sealed() then
        execute format('select count(*) from only %s as l where not exists ('
            'select from pgaudit_wf.log_leaf as s where s.event_id = l.id and s.tx_id = l.tx_id)', month.relation) into unsealed;
        if unsealed > 0 then
            raise exception 'events of % are not sealed yet: % of them', record_archive.partition_name, unsealed
                using errcode = 'PA345', hint = 'Seal them first: pgaudit-wf seal. Their archive could not be verified otherwise.';
        end if;
        select * into sealed from pgaudit_wf._month_leaves(month.from_time, month.to_time);
    else
        select null::bigint as leaves, null::bigint as tree_size, null::text as digest into sealed;
    end if;
    insert into pgaudit_wf.archive (partition_name, from_time, to_time, events, live_events, first_id, last_id, url, sha256, manifest,
        read_back_at, event_id, leaves_digest)
    values (record_archive.partition_name, month.from_time, month.to_time, found_events, found_events, lowest, highest,
        record_archive.url, record_archive.sha256, record_archive.manifest, now(), event_id, sealed.digest)
    returning id into archive_id;
    perform pgaudit_wf._record_release(event_id, 'audit.archived', 'archive', archive_id::text, null, jsonb_strip_nulls(jsonb_build_object(
        'month', to_char(month.from_time at time zone 'UTC', 'YYYY-MM'), 'events', found_events, 'sha256', record_archive.sha256,
        'leaves', sealed.leaves, 'tree_size', sealed.tree_size, 'digest', sealed.digest)));
    return archive_id;
end
$$;
comment on function pgaudit_wf.record_archive(text, text, text, jsonb) is
    'Records that a month of the log is in a file with that SHA-256 and manifest, and returns the archive''s number. '
    'Call it only once the file has been read back from its URL and compared with the partition, as prune() relies on it. '
    'Recorded as audit.archived. Raises PA340 if it is not a month of the log, PA350 if the manifest''s counts are not the partition''s, '
    'PA345 if the log is sealed and some of the month is not yet.';

create function pgaudit_wf._confirm_archive(id bigint, sha256 text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgaudit_wf.archive as a set read_back_at = now() where a.id = _confirm_archive.id and a.sha256 = _confirm_archive.sha256;
    if not found then
        raise exception 'there is no archive % with that SHA-256', _confirm_archive.id
            using errcode = 'PA350', hint = 'It was rewritten meanwhile: read it again.';
    end if;
end
$$;
comment on function pgaudit_wf._confirm_archive(bigint, text) is
    'Records that an archive''s file, of that SHA-256, was again read back from its URL and compared with the live events of its month. '
    'Raises PA350 if the archive has another SHA-256 by now.';

create function pgaudit_wf._replace_archive(id bigint, sha256 text, manifest jsonb) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgaudit_wf.archive as a set sha256 = _replace_archive.sha256, manifest = _replace_archive.manifest, read_back_at = null
    where a.id = _replace_archive.id
        and (a.events, a.first_id, a.last_id) = (
            (_replace_archive.manifest ->> 'events')::bigint,
            (_replace_archive.manifest ->> 'first_id')::bigint,
            (_replace_archive.manifest ->> 'last_id')::bigint);
    if not found then
        raise exception 'there is no archive % with the counts of that manifest', _replace_archive.id
            using errcode = 'PA350', hint = 'An erasure rewrites values in the file and removes no event.';
    end if;
    perform pgaudit_wf._record_release(pgaudit_wf._next_event_id(), 'audit.archive_rewritten', 'archive', _replace_archive.id::text, null,
        jsonb_build_object('sha256', _replace_archive.sha256));
end
$$;
comment on function pgaudit_wf._replace_archive(bigint, text, jsonb) is
    'Records that an erasure has rewritten an archive''s file; its manifest names the erasure and the file''s previous SHA-256. '
    'It must be read back again before its month is pruned. Raises PA350 if the counts changed.';

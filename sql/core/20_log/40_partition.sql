-- Partitions of the log: created before they are needed, with a default one so that no row is ever lost.

create function pgaudit_wf.add_log_partition(month date) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    first_day constant date := date_trunc('month', add_log_partition.month)::date;
    partition_name constant text := 'security_audit_log_' || to_char(first_day, '"y"YYYY"m"MM');
    from_time constant timestamptz := first_day;
    to_time constant timestamptz := first_day + interval '1 month';
begin
    if to_regclass(format('pgaudit_wf.%I', partition_name)) is not null then
        return null;
    end if;
    -- Two callers at once: the second waits, then finds the work done.
    perform pgaudit_wf._take_turn('partition');
    if to_regclass(format('pgaudit_wf.%I', partition_name)) is not null then
        return null;
    end if;
    execute format('create table pgaudit_wf.%I (like pgaudit_wf.security_audit_log'
        ' including defaults including constraints including compression)', partition_name);
    execute format('comment on table pgaudit_wf.%I is %L', partition_name, format('Events of %s (UTC).', to_char(first_day, 'YYYY-MM')));
    perform pgaudit_wf._revoke_defaults(format('pgaudit_wf.%I', partition_name)::regclass);

    -- Rows older than their partition wait in the default one, and would keep the new one from being attached.
    lock table only pgaudit_wf.security_audit_log_default in access exclusive mode;
    if exists (
        select from pgaudit_wf.security_audit_log_default as late where late.occurred_at >= from_time and late.occurred_at < to_time)
    then
        alter table pgaudit_wf.security_audit_log_default disable trigger user;
        execute format(
            'with late as (delete from only pgaudit_wf.security_audit_log_default where occurred_at >= $1 and occurred_at < $2 returning *)'
            ' insert into pgaudit_wf.%I select * from late', partition_name) using from_time, to_time;
        alter table pgaudit_wf.security_audit_log_default
            enable always trigger append_only_row, enable always trigger append_only, enable replica trigger note_arrival;
        if exists (select from pgaudit_wf.hub_node) then
            alter table pgaudit_wf.security_audit_log_default enable replica trigger arrive;
        end if;
    end if;

    execute format('alter table pgaudit_wf.security_audit_log attach partition pgaudit_wf.%I for values from (%L) to (%L)',
        partition_name, from_time, to_time);
    perform pgaudit_wf._guard_log_partition(partition_name);
    return partition_name;
end
$$;
comment on function pgaudit_wf.add_log_partition(date) is
    'Creates the log''s partition for a month (UTC), moving in rows that had to wait in the default partition; '
    'returns its name, or null if it already existed.';

create function pgaudit_wf._guard_log_partition(partition_name text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('create trigger append_only before update or delete or truncate on pgaudit_wf.%I'
        ' for each statement execute function pgaudit_wf._refuse_change()', partition_name);
    execute format('alter table pgaudit_wf.%I enable always trigger append_only, enable always trigger append_only_row', partition_name);
end
$$;
comment on function pgaudit_wf._guard_log_partition(text) is
    'Gives a partition of the log its own append-only triggers: those of the parent do not fire for a statement aimed at the partition.';

create function pgaudit_wf.ensure_log_partitions(months_ahead integer default 3) returns setof text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    made text;
begin
    -- A log restored from a dump learns here, at the latest, that it is in another cluster now.
    perform pgaudit_wf._note_generation();
    for ahead in 0 .. ensure_log_partitions.months_ahead loop
        made := pgaudit_wf.add_log_partition((date_trunc('month', now()) + make_interval(months => ahead))::date);
        if made is not null then
            return next made;
        end if;
    end loop;
end
$$;
comment on function pgaudit_wf.ensure_log_partitions(integer) is
    'Creates the missing partitions of the log for this month and the given number of months ahead, and returns their names. '
    'Call it at least monthly.';

create function pgaudit_wf.log_months() returns table (partition_name text, relation regclass, from_time timestamptz, to_time timestamptz)
language sql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
    select c.relname::text, c.oid::regclass, b.bound[1]::timestamptz, b.bound[2]::timestamptz
    from pg_inherits as i
    join pg_class as c on c.oid = i.inhrelid,
    lateral (select regexp_match(pg_get_expr(c.relpartbound, c.oid), $bound$FROM \('(.+)'\) TO \('(.+)'\)$bound$) as bound) as b
    where i.inhparent = 'pgaudit_wf.security_audit_log'::regclass and b.bound is not null
    order by 3
$$;
comment on function pgaudit_wf.log_months() is 'The monthly partitions of the log, oldest first.';

create function pgaudit_wf._month_of(partition_name text) returns table (relation regclass, from_time timestamptz, to_time timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
        select m.relation, m.from_time, m.to_time from pgaudit_wf.log_months() as m where m.partition_name = _month_of.partition_name;
    if not found then
        raise exception '"%" is not a monthly partition of the log', _month_of.partition_name
            using errcode = 'PA340', hint = 'pgaudit_wf.log_months() lists them.';
    end if;
end
$$;
comment on function pgaudit_wf._month_of(text) is 'A monthly partition of the log by name; raises PA340 if there is none of that name.';

create function pgaudit_wf._try_log_partitions() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- A new partition has to lock the default one, which a dump or another long reader holds; behind this, everybody would wait for it.
set lock_timeout = '100ms'
as $$
begin
    perform pgaudit_wf.ensure_log_partitions();
exception
    when lock_not_available then
        raise notice 'the next partitions of the log were not made, as somebody is reading the log'
            using hint = 'pgaudit-wf maintain makes them; until then events go to the default partition.';
end
$$;
comment on function pgaudit_wf._try_log_partitions() is 'ensure_log_partitions() for callers that must not wait.';

create table pgaudit_wf.security_audit_log_default partition of pgaudit_wf.security_audit_log default;
comment on table pgaudit_wf.security_audit_log_default is
    'Events for which there is no monthly partition; add_log_partition() moves them out. Should be empty.';
select pgaudit_wf._guard_log_partition('security_audit_log_default');

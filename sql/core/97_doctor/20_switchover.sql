-- From one cluster to another by logical replication: what replication does not carry.

create function pgaudit_wf.finish_switchover() returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    subscription text := (
        select s.subname from pg_subscription as s join pg_subscription_rel as r on r.srsubid = s.oid
        where r.srrelid in (select relid from pg_partition_tree('pgaudit_wf.security_audit_log')) limit 1);
    numbered record;
    newest bigint;
    renumbered bigint := 0;
begin
    if subscription is not null then
        raise exception 'subscription "%" still brings the log here', subscription
            using errcode = 'PA011',
                hint = 'Stop writes at its publisher, let it catch up, and drop it: drop subscription …; '
                    'then call finish_switchover() again.';
    end if;
    if not pgaudit_wf._is_moved() then
        return 0;
    end if;
    -- Nobody writes to the log meanwhile.
    lock table pgaudit_wf.security_audit_log in share row exclusive mode;
    newest := (select coalesce(max(id), 0) from pgaudit_wf.security_audit_log);
    renumbered := pgaudit_wf._renumber_events(newest);
    for numbered in
        select c.oid::regclass as relation, a.attname as name,
            pg_get_serial_sequence(c.oid::regclass::text, a.attname)::regclass as sequence
        from pg_class as c
        join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where c.relkind in ('r', 'p') and not c.relispartition
            and (c.relnamespace = 'pgaudit_wf'::regnamespace or c.oid in (select t.target from pgaudit_wf.attachment as t))
            and pg_get_serial_sequence(c.oid::regclass::text, a.attname) is not null
    loop
        -- Only forwards, for it may be called late.
        execute format('select setval(%1$L, greatest(max(%2$I), (select last_value from %3$s))) from %4$s having max(%2$I) is not null',
            numbered.sequence, numbered.name, numbered.sequence, numbered.relation);
    end loop;
    perform pgaudit_wf._restart_generation(newest);
    return renumbered;
end
$$;
comment on function pgaudit_wf.finish_switchover() is
    'After logical replication brought the log from another cluster and writes come here: '
    'moves the sequences of the audit schema and of attached tables on, and lets readers go on where they were. '
    'Events written here before it was called get new numbers; returns how many. '
    'May be called late and again; a login of the schema''s owner that may also use the sequences of attached tables. '
    'Raises PA011 while a subscription brings the log.';

create function pgaudit_wf._renumber_events(newest bigint) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    -- The last number given here.
    given constant bigint := (select case when is_called then last_value else 0 end from pgaudit_wf.security_audit_log_id_seq);
    -- What a copy of the files has from before is not from here.
    first_here constant bigint := (select case when is_called then last_value else 1 end from pgaudit_wf.log_arrival_seq);
    moved bigint;
begin
    if given < first_here then
        return 0;
    end if;
    perform pgaudit_wf._open_log(true);
    -- Neither who wrote an event is kept with it, nor when it arrived. But a number above those given here came along, and of two events
    -- with the same number one did: so what is younger than all of these was written here, after the subscription, unless it is older
    -- than all that got a lower number here. Of two older ones, that was which was written by the transaction that it names, or by one
    -- of its savepoints, which have somewhat higher ids.
    -- No reader has seen any, as they are refused until this is done.
    execute format(
        'with event as materialized ('
        '    select id, tx_id, occurred_at, xmin::text::bigint as written, (xmin::text::bigint - tx_id) & 4294967295 as behind'
        '    from pgaudit_wf.security_audit_log where id between $3 and $2'
        '), applied as materialized ('
        '    select greatest('
        '        0,'
        '        (select max(xmin::text::bigint) from pgaudit_wf.security_audit_log where id > $2),'
        '        (select max(older.written) from (select min(written) as written from event group by id having count(*) > 1) as older)'
        '    ) as until'
        '), ranked as ('
        '    select *, count(*) over (partition by id) as namesakes, row_number() over ('
        '        partition by id order by written > until and behind < 2147483648 desc, behind, written desc) as place'
        '    from event, applied'
        '), placed as ('
        '    select *, min(written) filter (where namesakes > 1 and written > until) over (order by id) as earliest from ranked'
        '), mine as ('
        '    delete from pgaudit_wf.security_audit_log as l using placed as r'
        '    where l.tx_id = r.tx_id and l.id = r.id and l.occurred_at = r.occurred_at and r.place = 1'
        '        and (r.namesakes > 1'
        '            or (r.written > r.until and r.written >= coalesce(r.earliest, 0) and r.behind < 2147483648))'
        '    returning l.*'
        ') insert into pgaudit_wf.security_audit_log (id, %1$s) overriding system value'
        ' select $1 + 1 + row_number() over (order by tx_id, id), %1$s from mine',
        (select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
            where attrelid = 'pgaudit_wf.security_audit_log'::regclass and attnum > 0 and not attisdropped and attname <> 'id'))
        using _renumber_events.newest, given, first_here;
    get diagnostics moved = row_count;
    perform pgaudit_wf._open_log(false);
    return moved;
end
$$;
comment on function pgaudit_wf._renumber_events(bigint) is
    'Gives events that were written here before the sequence was moved on, and so have numbers of events that came along, '
    'numbers of their own.';

create function pgaudit_wf._open_log(open boolean) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    part regclass;
begin
    for part in select relid from pg_partition_tree('pgaudit_wf.security_audit_log') loop
        execute format(case when _open_log.open then 'alter table %s disable trigger append_only, disable trigger append_only_row'
            else 'alter table %s enable always trigger append_only, enable always trigger append_only_row' end, part);
    end loop;
end
$$;
comment on function pgaudit_wf._open_log(boolean) is 'Lifts the guards of the log, or puts them back, within one transaction of the owner.';

create function pgaudit_wf._restart_generation(newest bigint) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    written constant bigint := (select last_value from pgaudit_wf.security_audit_log_id_seq);
begin
    -- The view takes the last number from the sequence: that of the last event which came along.
    perform setval('pgaudit_wf.security_audit_log_id_seq', newest + 1);
    refresh materialized view pgaudit_wf.log_origin;
    perform setval('pgaudit_wf.security_audit_log_id_seq', greatest(written, newest + 1));
    perform setval('pgaudit_wf.log_arrival_seq', 1, false);
    -- A copy of the files has its original's system identifier: a generation all the same, and sealed anew.
    insert into pgaudit_wf.log_generation (inherited_id, system_identifier)
    select o.inherited_id, o.system_identifier from pgaudit_wf.log_origin as o
    on conflict on constraint log_generation_pkey do nothing;
    delete from pgaudit_wf.version_place as p using pgaudit_wf.log_origin as o where p.system_identifier = o.system_identifier;
    perform pgaudit_wf._note_generation();
end
$$;
comment on function pgaudit_wf._restart_generation(bigint) is
    'Notes that the log goes on in this cluster after the last event that came along.';

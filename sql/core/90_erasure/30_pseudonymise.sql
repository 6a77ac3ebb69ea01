-- Erasure: a pseudonym replaces what identifies an actor; what was done, when and to what is kept.
--
-- actor_id is kept, as it is the key that connects everything: it must not be a name or an address itself.
-- For integrity checks, erased_event says which fields of which events are no longer what was sealed.

create table pgaudit_wf.erasure (
    actor_id text primary key,
    pseudonym text not null unique,
    erased_at timestamptz not null default now(),
    last_run_at timestamptz,
    events bigint not null default 0,
    versions bigint not null default 0,
    release_id bigint
);
comment on table pgaudit_wf.erasure is
    'Actors whose name, e-mail, address and user agent were erased. Holds no such value. Written by pseudonymise() only.';
comment on column pgaudit_wf.erasure.actor_id is 'Id of the actor, which is kept.';
comment on column pgaudit_wf.erasure.pseudonym is
    'What replaces name, e-mail and user agent; random, so it cannot be traced back to anybody.';
comment on column pgaudit_wf.erasure.erased_at is 'When it was first requested.';
comment on column pgaudit_wf.erasure.last_run_at is 'When it was last run; null: requested, not run yet.';
comment on column pgaudit_wf.erasure.events is 'Events of the log changed so far.';
comment on column pgaudit_wf.erasure.versions is 'Versions of workflows changed so far.';
comment on column pgaudit_wf.erasure.release_id is
    'Number that the event actor.pseudonymised of the current run will have; null: none is in progress.';

create table pgaudit_wf.erased_event (
    actor_id text not null references pgaudit_wf.erasure (actor_id),
    tx_id bigint not null,
    event_id bigint not null,
    fields text[] not null,
    erased_at timestamptz not null default now(),
    primary key (tx_id, event_id, actor_id)
);
comment on table pgaudit_wf.erased_event is
    'Events that an erasure changed, for integrity checks. Append-only except for the fields of a repeated erasure.';
comment on column pgaudit_wf.erased_event.actor_id is 'The actor.';
comment on column pgaudit_wf.erased_event.tx_id is 'tx_id of the event.';
comment on column pgaudit_wf.erased_event.event_id is 'id of the event.';
comment on column pgaudit_wf.erased_event.fields is
    'Columns that no longer hold what was recorded: actor_label, ip, user_agent, diff, metadata.';
comment on column pgaudit_wf.erased_event.erased_at is 'When it was last changed.';

create trigger append_only before delete or truncate on pgaudit_wf.erasure
    for each statement execute function pgaudit_wf._refuse_change();
create trigger append_only before delete or truncate on pgaudit_wf.erased_event
    for each statement execute function pgaudit_wf._refuse_change();
alter table pgaudit_wf.erasure enable always trigger append_only;
alter table pgaudit_wf.erased_event enable always trigger append_only;

create function pgaudit_wf._org_pseudonyms(actor_ids text[]) returns table (actor_id text, pseudonym text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    -- Of people who are not, or no longer, in the organization's log, only that there is something to mask.
    select e.actor_id,
        case when exists (
            select from pgaudit_wf.security_audit_log as l
            where l.org_id = org.id and (l.actor_id in (e.actor_id, e.pseudonym) or l.resource_id in (e.actor_id, e.pseudonym)))
            then e.pseudonym else '[erased]' end
    from pgaudit_wf.erasure as e, (select pgaudit_wf._readable_org() as id) as org
    where e.actor_id = any (_org_pseudonyms.actor_ids) and org.id is not null
$$;
comment on function pgaudit_wf._org_pseudonyms(text[]) is 'pseudonyms() for those who see one organization.';

create function pgaudit_wf.pseudonyms(actor_ids text[]) returns table (actor_id text, pseudonym text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if row_security_active('pgaudit_wf.security_audit_log') then
        return query select * from pgaudit_wf._org_pseudonyms(pseudonyms.actor_ids);
    else
        return query select e.actor_id, e.pseudonym from pgaudit_wf.erasure as e where e.actor_id = any (pseudonyms.actor_ids);
    end if;
end
$$;
comment on function pgaudit_wf.pseudonyms(text[]) is
    'Those of the actors who were erased, and their pseudonyms: for reading archives written before the erasure.';

create function pgaudit_wf._archives_with(pseudonym text) returns setof bigint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select a.id from pgaudit_wf.archive as a
    where a.url is not null
        and not coalesce(a.manifest -> 'erasures', '[]') @> jsonb_build_array(jsonb_build_object('pseudonym', _archives_with.pseudonym))
    order by a.id
$$;
comment on function pgaudit_wf._archives_with(text) is 'Numbers of the archives whose file an erasure has not yet rewritten.';

create function pgaudit_wf._erase_from_partition(
    part regclass, actor_id text, pseudonym text, known pgaudit_wf.personal_value[], release_id bigint
) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    types constant text[] := pgaudit_wf._actor_resource_types();
    emails constant text[] := array(select lower(v.value) from unnest(known) as v where v.kind = 'email');
    ids bigint[];
    changed bigint;
begin
    -- Searched before anything is locked, as writers to the newest partition then have to wait.
    execute format(
        'select array_agg(l.id) from only %s as l'
        ' where l.actor_id = $1 or l.resource_id = $1 or strpos(l.resource_id, to_json($1)::text) > 0'
        ' or strpos(l.diff::text, to_json($1)::text) > 0 or strpos(l.metadata::text, to_json($1)::text) > 0'
        ' or exists ('
        '     select from unnest($2) as email'
        '     where strpos(lower(concat_ws('' '', l.actor_label, l.user_agent, l.diff, l.metadata)), email) > 0)', part)
        into ids using _erase_from_partition.actor_id, emails;
    if ids is null then
        return 0;
    end if;
    -- So that a sealed event still verifies, and what is masked cannot be guessed from its leaf.
    perform pgaudit_wf._lock_seal();
    execute format(
        'select pgaudit_wf._keep_commitments('
        '     l::pgaudit_wf.security_audit_log, pgaudit_wf._mask_event(l::pgaudit_wf.security_audit_log, $1, $2, $3, $4), $6)'
        ' from only %s as l where l.id = any ($5)', part)
        using _erase_from_partition.actor_id, _erase_from_partition.pseudonym, types, known, ids, _erase_from_partition.release_id;
    execute format('alter table %s disable trigger append_only_row, disable trigger append_only', part);
    execute format(
        'with masked as ('
        '     select l.tx_id, l.id, l.occurred_at, m.actor_label, m.ip, m.user_agent, m.diff, m.metadata, array_remove(array['
        '         case when l.actor_label is distinct from m.actor_label then ''actor_label'' end,'
        '         case when l.ip is distinct from m.ip then ''ip'' end,'
        '         case when l.user_agent is distinct from m.user_agent then ''user_agent'' end,'
        '         case when l.diff is distinct from m.diff then ''diff'' end,'
        '         case when l.metadata is distinct from m.metadata then ''metadata'' end], null) as fields'
        '     from only %1$s as l, lateral pgaudit_wf._mask_event(l::pgaudit_wf.security_audit_log, $1, $2, $3, $4) as m'
        '     where l.id = any ($5)),'
        ' changed as ('
        '     update only %1$s as l'
        '     set actor_label = m.actor_label, ip = m.ip, user_agent = m.user_agent, diff = m.diff, metadata = m.metadata'
        '     from masked as m'
        '     where l.tx_id = m.tx_id and l.id = m.id and l.occurred_at = m.occurred_at and m.fields <> ''{}'''
        '     returning l.tx_id, l.id, m.fields)'
        ' insert into pgaudit_wf.erased_event as e (actor_id, tx_id, event_id, fields) select $1, c.tx_id, c.id, c.fields from changed as c'
        ' on conflict (tx_id, event_id, actor_id) do update'
        '     set fields = (select array_agg(distinct f) from unnest(e.fields || excluded.fields) as f), erased_at = now()', part)
        using _erase_from_partition.actor_id, _erase_from_partition.pseudonym, types, known, ids;
    get diagnostics changed = row_count;
    execute format('alter table %s enable always trigger append_only_row, enable always trigger append_only', part);
    return changed;
end
$$;
comment on function pgaudit_wf._erase_from_partition(regclass, text, text, pgaudit_wf.personal_value[], bigint) is
    'Erases an actor from one partition of the log; returns how many events that changed.';

create function pgaudit_wf._begin_erasure(actor_id text, known_elsewhere boolean default false) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    known text;
begin
    perform pgaudit_wf._take_turn('erasure');
    update pgaudit_wf.erasure as e set release_id = coalesce(e.release_id, pgaudit_wf._next_event_id())
    where e.actor_id = _begin_erasure.actor_id returning e.pseudonym into known;
    if found then
        return known;
    end if;
    -- A typo must not pass for an erasure.
    if _begin_erasure.actor_id is null or not (_begin_erasure.known_elsewhere
        or exists (select from pgaudit_wf.security_audit_log as l where l.actor_id = _begin_erasure.actor_id)
        or exists (
            select from pgaudit_wf.security_audit_log as l
            where l.resource_type = any (pgaudit_wf._actor_resource_types()) and l.resource_id = _begin_erasure.actor_id)
        or exists (select from pgaudit_wf.workflow_history as h where h.actor_id = _begin_erasure.actor_id)
        or exists (select from pgaudit_wf.actor_directory as d where d.actor_id = _begin_erasure.actor_id))
    then
        raise exception 'there is no actor "%"', _begin_erasure.actor_id
            using errcode = 'PA360',
                hint = 'Pass the id as in app.actor_id; this one is in neither the log, the history nor pgaudit_wf.actor_directory.';
    end if;
    insert into pgaudit_wf.erasure (actor_id, pseudonym, release_id)
    values (_begin_erasure.actor_id, 'erased-' || substr(replace(gen_random_uuid()::text, '-', ''), 1, 16), pgaudit_wf._next_event_id())
    returning pseudonym into known;
    return known;
end
$$;
comment on function pgaudit_wf._begin_erasure(text, boolean) is
    'Gives an actor the pseudonym that pseudonymise() will use, without changing an event yet: '
    'for a job that rewrites archives first, and may have found the actor only there (known_elsewhere). '
    'Raises PA360 for an unknown actor.';

create function pgaudit_wf.pseudonymise(actor_id text, more_values text[] default '{}')
returns table (pseudonym text, events bigint, versions bigint, archives bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    own boolean;
    label text;
    address text;
    agent text;
    reason text;
    known pgaudit_wf.personal_value[];
    emails text[];
    part regclass;
    version pgaudit_wf.workflow_history;
    masked pgaudit_wf.workflow_history;
    first_run boolean;
    event_id bigint;
    released jsonb;
begin
    perform pgaudit_wf._unpack_context();
    own := current_setting('app.actor_id', true) = pseudonymise.actor_id;
    label := current_setting('app.actor_label', true);
    address := current_setting('app.ip', true);
    agent := current_setting('app.user_agent', true);
    reason := current_setting('app.reason', true);
    pseudonym := pgaudit_wf._begin_erasure(pseudonymise.actor_id);
    select e.last_run_at is null, e.release_id into first_run, event_id
    from pgaudit_wf.erasure as e where e.actor_id = pseudonymise.actor_id;
    known := array(
        select v from pgaudit_wf._actor_values(pseudonymise.actor_id) as v
        union
        select row(pgaudit_wf._kind_of_value(more), more)::pgaudit_wf.personal_value
        from unnest(pseudonymise.more_values) as more where more <> '');
    emails := array(select v.value from unnest(known) as v where v.kind = 'email');

    perform pgaudit_wf._lock_seal();
    versions := 0;
    if exists (select from pgaudit_wf.workflow_history as h where h.actor_id = pseudonymise.actor_id and h.actor_label <> pseudonym) then
        for version in
            select h.* from pgaudit_wf.workflow_history as h
            where h.actor_id = pseudonymise.actor_id and h.actor_label <> pseudonymise.pseudonym
        loop
            masked := version;
            masked.actor_label := pseudonymise.pseudonym;
            perform pgaudit_wf._keep_commitments(version, masked, event_id);
        end loop;
        alter table pgaudit_wf.workflow_history disable trigger append_only;
        update pgaudit_wf.workflow_history as h set actor_label = pseudonymise.pseudonym
        where h.actor_id = pseudonymise.actor_id and h.actor_label <> pseudonymise.pseudonym;
        get diagnostics versions = row_count;
        alter table pgaudit_wf.workflow_history enable always trigger append_only;
    end if;
    events := 0;
    -- Oldest first: the partition that is being written to is the last to be locked.
    for part in
        select m.relation from pgaudit_wf.log_months() as m
        union all select 'pgaudit_wf.security_audit_log_default'::regclass
    loop
        events := events + pgaudit_wf._erase_from_partition(part, pseudonymise.actor_id, pseudonym, known, event_id);
    end loop;
    -- Pending deliveries still need their address.
    update pgaudit_wf.alert_delivery as d
    set recipient = pseudonymise.pseudonym || '/' || d.id,
        last_error = pgaudit_wf._mask_text(d.last_error, '{}', emails, pseudonymise.pseudonym)
    where d.state in ('sent', 'dead') and lower(d.recipient) in (select lower(email) from unnest(emails) as email);
    archives := (select count(*) from pgaudit_wf._archives_with(pseudonym));

    update pgaudit_wf.erasure as e
    set last_run_at = now(), events = e.events + pseudonymise.events, versions = e.versions + pseudonymise.versions, release_id = null
    where e.actor_id = pseudonymise.actor_id;
    released := pgaudit_wf._released_parts(event_id);
    if first_run or events > 0 or versions > 0 or released <> '{}' then
        -- Actors who erase themselves must not be recorded by name for it, nor must the reason name anybody erased.
        if own then
            perform set_config('app.actor_label', '', true), set_config('app.ip', '', true), set_config('app.user_agent', '', true);
        end if;
        perform set_config('app.reason',
            coalesce(pgaudit_wf._mask_text(reason, array(select v.value from unnest(known) as v), emails, pseudonym), ''), true);
        perform pgaudit_wf._record_release(event_id, 'actor.pseudonymised', 'actor', pseudonymise.actor_id,
            pgaudit_wf._context_value('app.org_id'),
            jsonb_build_object('pseudonym', pseudonym, 'events', events, 'versions', versions, 'archives', archives)
            || released);
        perform set_config('app.reason', coalesce(reason, ''), true);
        if own then
            perform set_config('app.actor_label', coalesce(label, ''), true), set_config('app.ip', coalesce(address, ''), true),
                set_config('app.user_agent', coalesce(agent, ''), true);
        end if;
    end if;
    return next;
end
$$;
comment on function pgaudit_wf.pseudonymise(text, text[]) is
    'Erases the identity of an actor: name, e-mail and user agent become a stable random pseudonym in log and history, '
    'the IP address null; more_values are other names and addresses of the same person. '
    'Returns the pseudonym, the events and versions changed, and how many archives have yet to be rewritten '
    '(pgaudit-wf erase rewrites them; until then they are masked when read). '
    'Recorded as actor.pseudonymised; calling it again covers what was recorded since. '
    'Delete the account first, as that is recorded too. Raises PA360 for an unknown actor.';

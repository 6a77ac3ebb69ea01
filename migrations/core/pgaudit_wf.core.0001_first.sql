-- generated from sql/ by make migration: edit sql/, not this

-- sql/core/010_schema.sql

-- The schema, the role it belongs to and the two group roles.
--
-- How it hangs together: attach() (080) compiles a trigger function for a table (070) from its settings (060) and rules (050);
-- the trigger appends one row to security_audit_log (030), whose column defaults say who is asking (020). Everything after
-- that only reads the log: the reader cursor (110), the trail (130), row_as_of (140).

-- Roles are shared by all databases of a server, so another database may have made them already, or be making them now; and a
-- managed server may not let us. grant_roles() in 900_grants.sql does the granting and can be run again once they exist.
do $$
declare
    role_name text;
begin
    foreach role_name in array array['pgaudit_wf_app', 'pgaudit_wf_reader'] loop
        if to_regrole(role_name) is null then
            begin
                execute format('create role %I nologin', role_name);
            exception
                when duplicate_object or unique_violation then
                    null;
                when insufficient_privilege then
                    raise notice 'role % was not created: % may not create roles', role_name, current_user
                        using hint = format('Have an administrator run "create role %I nologin", then run "select pgaudit_wf.grant_roles()".', role_name);
            end;
        end if;
    end loop;
end
$$;

-- Everything belongs to a role of its own that can do nothing else: whatever goes wrong in a function of ours goes wrong with the
-- rights to this schema only. Where the installing role may not make roles, or may not act for that one, it owns the schema itself.
do $$
declare
    surplus text;
begin
    if to_regrole('pgaudit_wf_owner') is null then
        begin
            create role pgaudit_wf_owner nologin;
        exception
            -- Roles are shared by all databases of a server: another one may be making it now.
            when duplicate_object or unique_violation then
                null;
            when insufficient_privilege then
                null;
        end;
    end if;
    select concat_ws(', ', case when rolsuper then 'superuser' end, case when rolcanlogin then 'login' end, case when rolcreaterole then 'createrole' end,
            case when rolcreatedb then 'createdb' end, case when rolreplication then 'replication' end, case when rolbypassrls then 'bypassrls' end,
            (select string_agg(format('member of %I', g.rolname), ', ') from pg_auth_members as m join pg_roles as g on g.oid = m.roleid where m.member = r.oid))
        into surplus
    from pg_roles as r where r.rolname = 'pgaudit_wf_owner';
    if surplus <> '' then
        raise exception 'role pgaudit_wf_owner, which is to own schema pgaudit_wf, has more than it may: %', surplus
            using errcode = 'PA009', hint = 'Take that from it (alter role … nologin nosuperuser …, revoke …), or drop the role if nothing needs it; then run this again.';
    end if;
    -- Since PostgreSQL 16 whoever makes a role is its administrator, and no more.
    if to_regrole('pgaudit_wf_owner') is not null
        and not pg_has_role('pgaudit_wf_owner', case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end)
    then
        begin
            execute format('grant pgaudit_wf_owner to %I', current_user);
        exception
            when insufficient_privilege then
                null;
        end;
    end if;
    begin
        create schema pgaudit_wf authorization pgaudit_wf_owner;
    exception
        when insufficient_privilege or undefined_object then
            create schema pgaudit_wf;
            raise notice 'schema pgaudit_wf belongs to %, which may not make or act for a role pgaudit_wf_owner', current_user
                using hint = 'An administrator can have it belong to a role that does nothing else: create role pgaudit_wf_owner nologin; grant pgaudit_wf_owner to the installing role.';
    end;
    -- Until 990, which makes what only the installing role can make.
    execute format('set role %s', (select nspowner::regrole from pg_namespace where nspname = 'pgaudit_wf'));
end
$$;

comment on schema pgaudit_wf is
    'Security audit trail: attach(table) records every change of it in security_audit_log, in the same transaction. Start with the views attached and audit_trail_entry and the function doctor().';

create function pgaudit_wf.schema_owner() returns name
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'pgaudit_wf' $$;
comment on function pgaudit_wf.schema_owner() is 'The role to which the schema and all in it belongs: pgaudit_wf_owner, or who installed it where that role could not be had.';

create function pgaudit_wf.revoke_defaults(relation regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    grantee text;
begin
    for grantee in
        select distinct case acl.grantee when 0 then 'public' else acl.grantee::regrole::text end
        from pg_class as c, aclexplode(c.relacl) as acl
        where c.oid = revoke_defaults.relation and acl.grantee <> c.relowner
    loop
        execute format('revoke all on table %s from %s', revoke_defaults.relation, grantee);
    end loop;
    -- A table's row type is everybody's to make columns of, and such a column keeps the table from being dropped.
    if (select reltype <> 0 from pg_class where oid = revoke_defaults.relation) then
        execute format('revoke usage on type %s from public', revoke_defaults.relation);
    end if;
end
$$;
comment on function pgaudit_wf.revoke_defaults(regclass) is
    'Takes from a new table, view or sequence of ours the rights that the database''s default privileges gave to others.';

-- sql/core/020_context.sql

-- Who is asking: the app.* settings, read in one place.

create function pgaudit_wf.context_value(setting text) returns text
language sql stable parallel safe
as $$
    -- A setting once set locally reads '' afterwards, not null. What an index holds must fit it, whatever a client sends.
    -- Not strict: then PostgreSQL would not inline it into the insert. The cast cuts as left() does, and does nothing to what fits.
    select nullif(current_setting(setting, true), '')::varchar(255)::text
$$;
comment on function pgaudit_wf.context_value(text) is
    'The value of a transaction-local app.* setting, at most 255 characters; null when it is not set.';

create function pgaudit_wf.context_reason() returns text
language sql stable parallel safe
as $$ select nullif(current_setting('app.reason', true), '')::varchar(4096)::text $$;
comment on function pgaudit_wf.context_reason() is 'app.reason, at most 4,096 characters; null when it is not set.';

create function pgaudit_wf.parse_ip(address text) returns inet
language plpgsql immutable strict
as $$
begin
    return address::pg_catalog.inet;
exception
    -- The write that is being audited must not fail because of a bad header.
    when invalid_text_representation then
        raise warning 'app.ip is no address and is not recorded';
        return null;
end
$$;
comment on function pgaudit_wf.parse_ip(text) is 'The text as an address; null, with a warning, if it is none.';

create function pgaudit_wf.context_ip() returns inet
language sql stable
as $$
    -- Only a transaction that says an address pays for the subtransaction in which it is tried. No address is longer than 64 characters,
    -- and the error over a text of 256 MB would be one of memory, which nothing catches.
    select case when current_setting('app.ip', true) <> '' then pgaudit_wf.parse_ip(current_setting('app.ip', true)::varchar(64)) end
$$;
comment on function pgaudit_wf.context_ip() is 'app.ip as an address; null when it is not set or is no address.';

-- sql/core/025_attestation.sql

-- Proof that a context was set by the application's own code and not by an injected SET: an HMAC that only it can make.
--
-- HMAC (RFC 2104) needs SHA-256 and the key padded in two ways; the pads are kept ready, so that no extension is needed.

create table pgaudit_wf.attestation_key (
    key_id text primary key,
    inner_pad bytea not null,
    outer_pad bytea not null,
    created_at timestamptz not null default now(),
    retired_at timestamptz,
    constraint attestation_key_id check (key_id ~ '^[A-Za-z0-9_-]{1,32}$'),
    constraint attestation_key_pads check (length(inner_pad) = 64 and length(outer_pad) = 64)
);
comment on table pgaudit_wf.attestation_key is 'Secrets with which applications attest who is asking. For the owner only: whoever reads it can act in anybody''s name.';
comment on column pgaudit_wf.attestation_key.key_id is 'Name of the key; it comes before the colon in app.attestation.';
comment on column pgaudit_wf.attestation_key.inner_pad is 'The key, xor 0x36 (RFC 2104, section 2).';
comment on column pgaudit_wf.attestation_key.outer_pad is 'The key, xor 0x5c.';
comment on column pgaudit_wf.attestation_key.created_at is 'When it was added.';
comment on column pgaudit_wf.attestation_key.retired_at is 'Since when it attests nothing any more.';

create function pgaudit_wf.pad_key(secret bytea, pad integer) returns bytea
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    -- RFC 2104: a key longer than a block is hashed first, a shorter one filled with zeros.
    padded bytea := case when length(secret) > 64 then sha256(secret) else secret end;
begin
    padded := padded || decode(repeat('00', 64 - length(padded)), 'hex');
    for place in 0 .. 63 loop
        padded := set_byte(padded, place, get_byte(padded, place) # pad);
    end loop;
    return padded;
end
$$;
comment on function pgaudit_wf.pad_key(bytea, integer) is 'An HMAC key filled to a block of 64 bytes, each xor pad (RFC 2104, section 2).';

create function pgaudit_wf.add_attestation_key(key_id text, secret bytea) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if coalesce(length(add_attestation_key.secret), 0) < 32 then
        raise exception 'the secret must have at least 32 bytes' using errcode = 'PA008', hint = 'Make one with: openssl rand -hex 32';
    end if;
    insert into pgaudit_wf.attestation_key (key_id, inner_pad, outer_pad)
    values (add_attestation_key.key_id, pgaudit_wf.pad_key(add_attestation_key.secret, 54), pgaudit_wf.pad_key(add_attestation_key.secret, 92));
end
$$;
comment on function pgaudit_wf.add_attestation_key(text, bytea) is
    'Lets contexts be attested with a secret of at least 32 bytes (request_context(…, attest=AttestationKey(key_id, secret))). Raises PA008 on a shorter one.';

create function pgaudit_wf.retire_attestation_key(key_id text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgaudit_wf.attestation_key as k set retired_at = now() where k.key_id = retire_attestation_key.key_id and k.retired_at is null;
    if not found then
        raise exception 'there is no attestation key "%" in use', retire_attestation_key.key_id using errcode = 'PA008';
    end if;
end
$$;
comment on function pgaudit_wf.retire_attestation_key(text) is 'Stops accepting a key; what it has attested stays attested. Raises PA008 for an unknown one.';

create function pgaudit_wf.attested_part(value text) returns text
language sql immutable parallel safe
as $$ select case when value = '' then '-' else coalesce(octet_length(value) || ':' || value, '-') end $$;
comment on function pgaudit_wf.attested_part(text) is 'A value as it is signed: its length in bytes, a colon and itself; "-" for none, so that no two contexts read the same.';

create function pgaudit_wf.check_attestation(attestation text) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    message constant bytea := convert_to(
        'pgaudit_wf.attest.v1'
            || pgaudit_wf.attested_part(current_setting('app.actor_id', true))
            || pgaudit_wf.attested_part(current_setting('app.org_id', true))
            || pgaudit_wf.attested_part(current_setting('app.correlation_id', true)), 'UTF8');
    given constant text := split_part(attestation, ':', 2);
    expected text;
begin
    select encode(sha256(k.outer_pad || sha256(k.inner_pad || message)), 'hex') into expected
    from pgaudit_wf.attestation_key as k
    where k.key_id = split_part(attestation, ':', 1) and k.retired_at is null;
    -- Hashes are compared, so that the time it takes says nothing about the right one.
    return coalesce(sha256(convert_to(given, 'UTF8')) = sha256(convert_to(expected, 'UTF8')), false);
end
$$;
comment on function pgaudit_wf.check_attestation(text) is
    'Whether app.attestation (key_id:hex) is HMAC-SHA256 over the context''s actor, organisation and correlation id. Stated in docs/context.md.';

create function pgaudit_wf.context_attested() returns boolean
language sql stable
as $$ select case when current_setting('app.attestation', true) <> '' then pgaudit_wf.check_attestation(current_setting('app.attestation', true)) else false end $$;
comment on function pgaudit_wf.context_attested() is 'Whether the application has proved that it set the context; false when it did not try.';

-- sql/core/030_security_audit_log.sql

-- The log: one row an event, append-only, partitioned by month.

-- A domain, because a CHECK of the table costs each insert 5 µs more.
create domain pgaudit_wf.event_outcome as text
    constraint event_outcome_known check (value in ('succeeded', 'failed', 'denied'));
comment on domain pgaudit_wf.event_outcome is 'How an event ended: succeeded, failed or denied.';

create table pgaudit_wf.security_audit_log (
    id bigint generated always as identity,
    occurred_at timestamptz not null default clock_timestamp(),
    -- The same number as pg_current_xact_id(), which has no cast to bigint: by way of text it takes 1 to 2 µs more.
    tx_id bigint not null default txid_current(),
    actor_id text default pgaudit_wf.context_value('app.actor_id'),
    actor_label text default pgaudit_wf.context_value('app.actor_label'),
    org_id text default pgaudit_wf.context_value('app.org_id'),
    org_label text default pgaudit_wf.context_value('app.org_label'),
    auth_method text default pgaudit_wf.context_value('app.auth_method'),
    api_key_id text default pgaudit_wf.context_value('app.api_key_id'),
    action text not null,
    resource_type text,
    resource_id text,
    outcome pgaudit_wf.event_outcome not null default 'succeeded',
    captured boolean not null default false,
    attested boolean not null default pgaudit_wf.context_attested(),
    diff jsonb,
    metadata jsonb not null default '{}',
    ip inet default pgaudit_wf.context_ip(),
    country text default pgaudit_wf.context_value('app.country'),
    user_agent text default nullif(current_setting('app.user_agent', true), '')::varchar(1024),
    correlation_id text default pgaudit_wf.context_value('app.correlation_id'),
    db_user text not null default session_user,
    application_name text default nullif(current_setting('application_name', true), ''),
    -- tx_id first: it is the order in which readers follow the log (110_reader.sql), and inserts go to the right edge.
    primary key (tx_id, id, occurred_at)
) partition by range (occurred_at);

comment on table pgaudit_wf.security_audit_log is
    'The security audit trail, one row an event. Append-only for everyone; who and from where come from the app.* settings of the transaction by column default, each at most 255 characters where nothing else is said. Partitioned by month of occurred_at.';
comment on column pgaudit_wf.security_audit_log.id is 'Number of the event, unique; given before commit, so not an order of visibility: read by (tx_id, id).';
comment on column pgaudit_wf.security_audit_log.occurred_at is 'Wall-clock time at which the change was made (not when its transaction began or committed).';
comment on column pgaudit_wf.security_audit_log.tx_id is '64-bit id of the transaction that made the change.';
comment on column pgaudit_wf.security_audit_log.actor_id is 'Who did it (app.actor_id); null when nobody said, then db_user and application_name still do.';
comment on column pgaudit_wf.security_audit_log.actor_label is 'Name of the actor at that time (app.actor_label), a snapshot that outlives the account.';
comment on column pgaudit_wf.security_audit_log.org_id is 'Organisation the changed resource belongs to: its own org column, else app.org_id; null for what belongs to no organisation.';
comment on column pgaudit_wf.security_audit_log.org_label is 'Name of the organisation at that time (app.org_label).';
comment on column pgaudit_wf.security_audit_log.auth_method is 'How the actor signed in (app.auth_method), such as session, api_key, oauth, webhook.';
comment on column pgaudit_wf.security_audit_log.api_key_id is 'Id of the API key that was used, if any (app.api_key_id); never the key.';
comment on column pgaudit_wf.security_audit_log.action is 'What it means, such as api_key.revoked: from action_rule, else <resource_type>.created, .updated, .deleted, .truncated.';
comment on column pgaudit_wf.security_audit_log.resource_type is 'Kind of thing that changed, as named at attach().';
comment on column pgaudit_wf.security_audit_log.resource_id is 'Key of the row as text, several key columns as a JSON array; over 1,024 bytes its SHA-256 as sha256:<hex>.';
comment on column pgaudit_wf.security_audit_log.outcome is 'succeeded, failed (an attempt that raised) or denied (an attempt that was refused).';
comment on column pgaudit_wf.security_audit_log.captured is 'True when a trigger saw the change itself; false when the application reported it through record_event().';
comment on column pgaudit_wf.security_audit_log.attested is 'True when the application proved, by an HMAC that injected SQL cannot make, that it set actor, organisation and correlation id.';
comment on column pgaudit_wf.security_audit_log.diff is 'JSON Patch (RFC 6902) from the old row to the new one; remove and replace also carry "old", so that it runs backwards.';
comment on column pgaudit_wf.security_audit_log.metadata is 'More about the event: label of the resource at that time, reason (app.reason, at most 4,096 characters), previous_resource_id of a row whose key changed, and what record_event() was given; a part that is larger than 1 MiB by its SHA-256 and length.';
comment on column pgaudit_wf.security_audit_log.ip is 'Address of the client (app.ip).';
comment on column pgaudit_wf.security_audit_log.country is 'Country of the client (app.country), as the application looked it up.';
comment on column pgaudit_wf.security_audit_log.user_agent is 'User agent of the client (app.user_agent), at most 1,024 characters.';
comment on column pgaudit_wf.security_audit_log.correlation_id is 'Id that ties together all events of one request (app.correlation_id).';
comment on column pgaudit_wf.security_audit_log.db_user is 'Login role of the database session (session_user).';
comment on column pgaudit_wf.security_audit_log.application_name is 'application_name of the database session.';

create index security_audit_log_org on pgaudit_wf.security_audit_log (org_id, occurred_at, id) where org_id is not null;
create index security_audit_log_actor on pgaudit_wf.security_audit_log (actor_id, occurred_at, id) where actor_id is not null;
create index security_audit_log_resource on pgaudit_wf.security_audit_log (resource_type, resource_id, occurred_at, id);
create index security_audit_log_action on pgaudit_wf.security_audit_log (action, occurred_at, id);
create index security_audit_log_correlation on pgaudit_wf.security_audit_log (correlation_id) where correlation_id is not null;
-- Finds an event by id alone, and a range of transactions, at next to no cost for the writer.
create index security_audit_log_tx on pgaudit_wf.security_audit_log using brin (tx_id, id) with (pages_per_range = 32, autosummarize = on);

create function pgaudit_wf.refuse_change() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception '%.% is append-only: % is refused', tg_table_schema, tg_table_name, lower(tg_op)
        using errcode = 'PA001',
            hint = 'Events are never changed; old ones leave by pgaudit_wf.prune(), a whole partition at a time.';
end
$$;
comment on function pgaudit_wf.refuse_change() is
    'Trigger that makes a table append-only: raises PA001 on UPDATE, DELETE and TRUNCATE.';

-- "Always", so that session_replication_role = replica does not open a door. The row trigger is inherited by every partition,
-- also by one that somebody makes by hand; a statement trigger is not, so add_log_partition() gives each partition its own.
create trigger append_only_row before update or delete on pgaudit_wf.security_audit_log
    for each row execute function pgaudit_wf.refuse_change();
create trigger append_only before update or delete or truncate on pgaudit_wf.security_audit_log
    for each statement execute function pgaudit_wf.refuse_change();
alter table pgaudit_wf.security_audit_log enable always trigger append_only_row;
alter table pgaudit_wf.security_audit_log enable always trigger append_only;

-- sql/core/040_log_partition.sql

-- Partitions of the log: there before they are needed, and a default one so that no row is ever lost.

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
    -- Two callers at once: the second waits, then finds the work done.
    perform pg_advisory_xact_lock(hashtext('pgaudit_wf.add_log_partition'));
    if to_regclass(format('pgaudit_wf.%I', partition_name)) is not null then
        return null;
    end if;
    execute format('create table pgaudit_wf.%I (like pgaudit_wf.security_audit_log including defaults including constraints)', partition_name);
    execute format('comment on table pgaudit_wf.%I is %L', partition_name, format('Events of %s (UTC).', to_char(first_day, 'YYYY-MM')));
    perform pgaudit_wf.revoke_defaults(format('pgaudit_wf.%I', partition_name)::regclass);

    -- Rows that came before their partition did wait in the default one, and would keep the new one out.
    lock table only pgaudit_wf.security_audit_log_default in access exclusive mode;
    if exists (select from pgaudit_wf.security_audit_log_default as late where late.occurred_at >= from_time and late.occurred_at < to_time) then
        alter table pgaudit_wf.security_audit_log_default disable trigger user;
        execute format(
            'with late as (delete from only pgaudit_wf.security_audit_log_default where occurred_at >= $1 and occurred_at < $2 returning *)'
            ' insert into pgaudit_wf.%I select * from late', partition_name) using from_time, to_time;
        alter table pgaudit_wf.security_audit_log_default enable always trigger append_only_row, enable always trigger append_only;
    end if;

    execute format('alter table pgaudit_wf.security_audit_log attach partition pgaudit_wf.%I for values from (%L) to (%L)',
        partition_name, from_time, to_time);
    perform pgaudit_wf.guard_log_partition(partition_name);
    return partition_name;
end
$$;
comment on function pgaudit_wf.add_log_partition(date) is
    'Makes the log''s partition for a month (UTC), moving in rows that had to wait in the default partition; returns its name, or null if it was there.';

create function pgaudit_wf.guard_log_partition(partition_name text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('create trigger append_only before update or delete or truncate on pgaudit_wf.%I'
        ' for each statement execute function pgaudit_wf.refuse_change()', partition_name);
    execute format('alter table pgaudit_wf.%I enable always trigger append_only, enable always trigger append_only_row', partition_name);
end
$$;
comment on function pgaudit_wf.guard_log_partition(text) is
    'Gives a partition of the log its own append-only triggers: those of the parent do not fire for a statement aimed at the partition.';

create function pgaudit_wf.ensure_log_partitions(months_ahead integer default 3) returns setof text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    made text;
begin
    -- A log restored from a dump learns here, at the latest, that it lives in another cluster now.
    perform pgaudit_wf.note_generation();
    for ahead in 0 .. ensure_log_partitions.months_ahead loop
        made := pgaudit_wf.add_log_partition((date_trunc('month', now()) + make_interval(months => ahead))::date);
        if made is not null then
            return next made;
        end if;
    end loop;
end
$$;
comment on function pgaudit_wf.ensure_log_partitions(integer) is
    'Makes the log''s partitions for this month and the given number of months ahead, as far as they are missing; returns the names made. Call it at least monthly.';

create table pgaudit_wf.security_audit_log_default partition of pgaudit_wf.security_audit_log default;
comment on table pgaudit_wf.security_audit_log_default is
    'Events for which there is no monthly partition; add_log_partition() moves them out. Should be empty.';
select pgaudit_wf.guard_log_partition('security_audit_log_default');

-- sql/core/050_action_rule.sql

-- What a change means: rules as rows, compiled into each table's trigger by attach().

create table pgaudit_wf.action_rule (
    id bigint generated always as identity primary key,
    resource_type text not null,
    op text not null,
    condition text,
    action text not null,
    position integer not null default 100,
    constraint action_rule_op check (op in ('insert', 'update', 'delete')),
    constraint action_rule_action check (action <> '' and length(action) <= 128),
    constraint action_rule_condition check (condition <> '')
);
comment on table pgaudit_wf.action_rule is
    'Names for changes: the first rule of the resource type and op, by (position, id), whose condition is true gives the action; without one it is <resource_type>.created, .updated or .deleted. Takes effect at once on attached tables.';
comment on column pgaudit_wf.action_rule.id is 'Number of the rule.';
comment on column pgaudit_wf.action_rule.resource_type is 'Resource type of the tables the rule is for, as given to attach().';
comment on column pgaudit_wf.action_rule.op is 'insert, update or delete.';
comment on column pgaudit_wf.action_rule.condition is 'Boolean SQL expression over new (insert), old and new (update) or old (delete); null is always true. Functions and operators outside pg_catalog need their schema.';
comment on column pgaudit_wf.action_rule.action is 'Action to record, such as invoice.paid.';
comment on column pgaudit_wf.action_rule.position is 'Rules are tried from the lowest position up.';

create function pgaudit_wf.check_action_rule(target regclass, rule pgaudit_wf.action_rule) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if (check_action_rule.rule).condition is null
        -- Whoever may not see into the table's schema cannot check: the trigger then finds out.
        or not has_schema_privilege((select relnamespace from pg_class where oid = check_action_rule.target), 'usage') then
        return;
    end if;
    -- It has to stand alone (in parentheses), and where the trigger puts it. The line break keeps a trailing comment in the
    -- condition from hiding the rest. Prepared, not run: so nothing of it is evaluated, and no right to read the table is needed.
    execute format('prepare pgaudit_wf_rule as select case when %2$s%3$s then true end from %1$s where (%2$s%3$s)',
        case (check_action_rule.rule).op
            when 'insert' then format('%s as new', check_action_rule.target)
            when 'update' then format('%1$s as old, %1$s as new', check_action_rule.target)
            when 'delete' then format('%s as old', check_action_rule.target)
        end,
        (check_action_rule.rule).condition, e'\n');
    deallocate pgaudit_wf_rule;
exception
    when others then
        raise exception 'action rule % (% of % is %) does not compile for %: %',
            (check_action_rule.rule).id, (check_action_rule.rule).op, (check_action_rule.rule).resource_type,
            (check_action_rule.rule).action, check_action_rule.target, sqlerrm
            using errcode = 'PA003',
                detail = format('Its condition is: %s', (check_action_rule.rule).condition),
                hint = 'A condition is a boolean expression over old and new (insert: only new, delete: only old); name functions and types outside pg_catalog with their schema.';
end
$$;
comment on function pgaudit_wf.check_action_rule(regclass, pgaudit_wf.action_rule) is
    'Raises PA003 with the rule''s text if its condition is no boolean expression over the table''s old and new row.';

create function pgaudit_wf.broken_rules() returns table (target regclass, rule_id bigint, problem text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    pair record;
begin
    for pair in
        select a.target, r as rule from pgaudit_wf.attachment as a join pgaudit_wf.action_rule as r on r.resource_type = a.resource_type
        where r.condition is not null and exists (select from pg_class where oid = a.target)
        order by a.target::oid, r.position, r.id
    loop
        begin
            perform pgaudit_wf.check_action_rule(pair.target, pair.rule);
        exception
            when sqlstate 'PA003' then
                target := pair.target;
                rule_id := (pair.rule).id;
                problem := sqlerrm;
                return next;
        end;
    end loop;
end
$$;
comment on function pgaudit_wf.broken_rules() is
    'Rules that compiled once and no longer do, because a type, a label, a function or a column that they name is gone: changes are recorded all the same, without that meaning.';

-- sql/core/060_attachment.sql

-- Which tables are audited, and how; and who changed that.

create table pgaudit_wf.attachment (
    target regclass primary key,
    resource_type text not null,
    id_columns text[] not null,
    org_column text,
    label_column text,
    ignore text[] not null,
    redact text[] not null,
    on_failure text not null,
    form text not null,
    function_name text not null unique,
    columns text[] not null,
    usage_granted name,
    attached_at timestamptz not null default now(),
    attached_by text not null default session_user,
    constraint attachment_on_failure check (on_failure in ('abort', 'warn')),
    constraint attachment_form check (form in ('compiled', 'generic')),
    constraint attachment_id_columns check (cardinality(id_columns) > 0)
);
comment on table pgaudit_wf.attachment is 'Settings of the audited tables; written by attach() and detach() only. Read the view attached.';
comment on column pgaudit_wf.attachment.target is 'The audited table.';
comment on column pgaudit_wf.attachment.resource_type is 'resource_type of its events, and the first half of their default actions.';
comment on column pgaudit_wf.attachment.id_columns is 'Columns that make up resource_id.';
comment on column pgaudit_wf.attachment.org_column is 'Column that gives org_id; null when the table has none and app.org_id is taken.';
comment on column pgaudit_wf.attachment.label_column is 'Column whose value is kept as metadata.label.';
comment on column pgaudit_wf.attachment.ignore is 'Columns left out of the log altogether: a change of nothing else makes no event.';
comment on column pgaudit_wf.attachment.redact is 'Columns that are shown as "[redacted]".';
comment on column pgaudit_wf.attachment.on_failure is 'abort: no change without its record. warn: the change goes through, the failure is counted.';
comment on column pgaudit_wf.attachment.form is 'compiled: native comparisons, kept up to date by the DDL event trigger. generic: by to_jsonb, for servers without that event trigger.';
comment on column pgaudit_wf.attachment.function_name is 'Trigger function in schema pgaudit_wf; read it with \sf.';
comment on column pgaudit_wf.attachment.columns is 'The table''s columns as compiled, in order: how a rename is recognised.';
comment on column pgaudit_wf.attachment.usage_granted is 'Owner of a partitioned table who was given USAGE of our schema because of it.';
comment on column pgaudit_wf.attachment.attached_at is 'When it was attached first.';
comment on column pgaudit_wf.attachment.attached_by is 'Login role that attached it first.';

create table pgaudit_wf.workflow_attachment (
    target regclass primary key,
    nodes_column text not null,
    edges_column text not null,
    name_column text,
    description_column text,
    visibility_column text,
    enabled_column text,
    listed_column text,
    listing_columns text[] not null,
    id_prefix text not null unique
);
comment on table pgaudit_wf.workflow_attachment is 'Attached tables that hold workflows, and where in them; written by attach_workflow() and detach() only.';
comment on column pgaudit_wf.workflow_attachment.target is 'The table.';
comment on column pgaudit_wf.workflow_attachment.nodes_column is 'Column with the array of nodes (jsonb or json).';
comment on column pgaudit_wf.workflow_attachment.edges_column is 'Column with the array of edges (jsonb or json).';
comment on column pgaudit_wf.workflow_attachment.name_column is 'Column with the workflow''s name.';
comment on column pgaudit_wf.workflow_attachment.description_column is 'Column with its description.';
comment on column pgaudit_wf.workflow_attachment.visibility_column is 'Column that says who may see it.';
comment on column pgaudit_wf.workflow_attachment.enabled_column is 'Boolean column that switches it on.';
comment on column pgaudit_wf.workflow_attachment.listed_column is 'Boolean column that puts it on the marketplace.';
comment on column pgaudit_wf.workflow_attachment.listing_columns is 'Columns of its marketplace listing: a change of one makes a version of source listing.';
comment on column pgaudit_wf.workflow_attachment.id_prefix is 'What workflow_history puts before this table''s ids: nothing for the first table, then <resource_type>/.';

create function pgaudit_wf.definition_columns(target regclass) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce((select array[nodes_column, edges_column] from pgaudit_wf.workflow_attachment as w where w.target = definition_columns.target), '{}')
$$;
comment on function pgaudit_wf.definition_columns(regclass) is 'The nodes and edges columns of an attached workflow table; none for other tables.';

create table pgaudit_wf.attachment_history (
    id bigint generated always as identity primary key,
    occurred_at timestamptz not null default clock_timestamp(),
    target text not null,
    resource_type text not null,
    change text not null,
    detail jsonb not null default '{}',
    db_user text not null default session_user,
    constraint attachment_history_change check (change in ('attached', 'changed', 'detached', 'altered', 'dropped'))
);
comment on table pgaudit_wf.attachment_history is 'Who attached, changed or detached which table and when, and how its columns changed since. Append-only.';
comment on column pgaudit_wf.attachment_history.id is 'Number of the entry.';
comment on column pgaudit_wf.attachment_history.occurred_at is 'When it happened.';
comment on column pgaudit_wf.attachment_history.target is 'The table''s name at that time.';
comment on column pgaudit_wf.attachment_history.resource_type is 'Its resource type.';
comment on column pgaudit_wf.attachment_history.change is 'attached, changed (settings), detached, altered (its columns, by DDL) or dropped.';
comment on column pgaudit_wf.attachment_history.detail is 'Settings after the change, or the columns added, dropped and renamed ({old name: new name}).';
comment on column pgaudit_wf.attachment_history.db_user is 'Login role that did it.';
create trigger append_only before update or delete or truncate on pgaudit_wf.attachment_history
    for each statement execute function pgaudit_wf.refuse_change();
alter table pgaudit_wf.attachment_history enable always trigger append_only;

create table pgaudit_wf.capture_failure (
    id bigint generated always as identity primary key,
    occurred_at timestamptz not null default clock_timestamp(),
    target text not null,
    op text not null,
    sqlstate text not null
);
comment on table pgaudit_wf.capture_failure is 'Changes that went through unrecorded, on tables attached with on_failure => ''warn''. Never holds values.';
comment on column pgaudit_wf.capture_failure.id is 'Number of the failure.';
comment on column pgaudit_wf.capture_failure.occurred_at is 'When it happened.';
comment on column pgaudit_wf.capture_failure.target is 'The table.';
comment on column pgaudit_wf.capture_failure.op is 'INSERT, UPDATE, DELETE or TRUNCATE.';
comment on column pgaudit_wf.capture_failure.sqlstate is 'SQLSTATE of the error that kept it from being recorded.';

create table pgaudit_wf.key_change (
    resource_type text not null,
    old_id text not null,
    new_id text not null,
    org_id text,
    primary key (resource_type, old_id, new_id)
);
comment on table pgaudit_wf.key_change is 'Rows whose key was changed: where the log of a row goes on under another resource_id.';
comment on column pgaudit_wf.key_change.resource_type is 'resource_type of the row.';
comment on column pgaudit_wf.key_change.old_id is 'resource_id before.';
comment on column pgaudit_wf.key_change.new_id is 'resource_id of the event that changed it, and of those after it.';
comment on column pgaudit_wf.key_change.org_id is 'Organisation of the row.';

create function pgaudit_wf.count_failure(target text, op text, failure text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into pgaudit_wf.capture_failure (target, op, sqlstate)
    values (count_failure.target, count_failure.op, count_failure.failure);
exception
    when others then
        raise warning 'pgaudit_wf could not count the failure either (SQLSTATE %)', sqlstate;
end
$$;
comment on function pgaudit_wf.count_failure(text, text, text) is 'Notes a change that went through unrecorded (on_failure => ''warn'').';

create function pgaudit_wf.column_names(target regclass) returns text[]
language sql stable strict
set search_path = pg_catalog, pg_temp
as $$
    select array_agg(attname::text order by attnum)
    from pg_attribute
    where attrelid = $1 and attnum > 0 and not attisdropped
$$;
comment on function pgaudit_wf.column_names(regclass) is 'Names of the table''s columns, in order.';

-- sql/core/065_column_type.sql

-- How a column has to be compared and read, by its type.

create function pgaudit_wf.base_type(type oid) returns oid
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = base_type.type);
begin
    return case when info.typtype = 'd' then pgaudit_wf.base_type(info.typbasetype) else info.oid end;
end
$$;
comment on function pgaudit_wf.base_type(oid) is 'The type itself, or what a domain is made of.';

create function pgaudit_wf.field(record_name text, column_name text) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- Always in quotes: PL/pgSQL takes some names (by, if, loop, …) for its own words that quote_ident() leaves as they are.
    select quote_ident(record_name) || '."' || replace(column_name, '"', '""') || '"'
$$;
comment on function pgaudit_wf.field(text, text) is 'A column of a record as PL/pgSQL reads it, whatever it is called.';

create function pgaudit_wf.is_built_in(type oid) returns boolean
language sql stable strict
set search_path = pg_catalog, pg_temp
as $$
    -- initdb gives out the numbers below 16,384 only (FirstNormalObjectId); nobody else can define a cast between two of those types.
    select pgaudit_wf.base_type(is_built_in.type) < 16384
$$;
comment on function pgaudit_wf.is_built_in(oid) is 'Whether a type is PostgreSQL''s own, or a domain over one that is.';

create function pgaudit_wf.compare_by_text(type oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = pgaudit_wf.base_type(compare_by_text.type));
begin
    return case
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf.compare_by_text(info.typelem)
        -- 1.0 and 1.00 are equal; as bounds they read differently.
        when info.typtype in ('r', 'm') then (
            select rngsubtype = 'numeric'::regtype or pgaudit_wf.compare_by_text(rngsubtype)
            from pg_range where info.oid in (rngtypid, rngmultitypid))
        -- To "=", a month is 30 days.
        when info.oid = 'interval'::regtype then true
        else not exists (
            select from pg_opclass as class
            join pg_am as method on method.oid = class.opcmethod and method.amname in ('btree', 'hash')
            where class.opcintype = info.oid
                or exists (select from pg_cast where castsource = info.oid and casttarget = class.opcintype and castmethod = 'b' and castcontext = 'i'))
    end;
end
$$;
comment on function pgaudit_wf.compare_by_text(oid) is
    'Whether values of a built-in type must be compared as text, for want of an equality that tells apart what reads differently (json, xml, point, interval, and what contains them).';

create function pgaudit_wf.holds_json(type oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = holds_json.type);
begin
    return case
        when info.oid = 'json'::regtype then true
        when info.typtype = 'd' then pgaudit_wf.holds_json(info.typbasetype)
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf.holds_json(info.typelem)
        when info.typtype = 'c' then exists (
            select from pg_attribute
            where attrelid = info.typrelid and attnum > 0 and not attisdropped and pgaudit_wf.holds_json(atttypid))
        else false
    end;
end
$$;
comment on function pgaudit_wf.holds_json(oid) is
    'Whether values of a type are or contain json, which can hold what jsonb cannot.';

create function pgaudit_wf.json_value(value json) returns jsonb
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return value::jsonb;
exception
    when data_exception or program_limit_exceeded then
        return to_jsonb(value::text);
end
$$;
comment on function pgaudit_wf.json_value(json) is
    'json as jsonb; its text as a JSON string where jsonb cannot hold it (\u0000, a lone surrogate, a number beyond numeric).';

create function pgaudit_wf.json_without_casts(type oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = pgaudit_wf.base_type(json_without_casts.type));
begin
    return case
        when pgaudit_wf.is_built_in(info.oid) then true
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf.json_without_casts(info.typelem)
        when info.typtype = 'c' then not exists (
            select from pg_attribute
            where attrelid = info.typrelid and attnum > 0 and not attisdropped and not pgaudit_wf.json_without_casts(atttypid))
        -- Only the owner of a type can make a cast of it to json; 10 is the superuser that initdb made, who stays one.
        else info.typowner = 10
    end;
end
$$;
comment on function pgaudit_wf.json_without_casts(oid) is
    'Whether to_jsonb() turns values of a type into JSON without running a cast that somebody other than a superuser can define.';

create function pgaudit_wf.text_expression(type oid, expression text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- format() asks the type's output function, where "::text" would look for a cast first.
    select format(case when pgaudit_wf.is_built_in(type) then '%1$s::text' else 'case when %1$s is distinct from null then format(''%%s'', %1$s) end' end,
        expression)
$$;
comment on function pgaudit_wf.text_expression(oid, text) is 'SQL expression for a value of a type as text, by which nobody''s cast is run.';

create function pgaudit_wf.array_json(elements anyarray) returns jsonb
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case
        when elements is null then null
        when array_ndims(elements) > 1 then to_jsonb(format('%s', elements))
        else to_jsonb(array(select case when element is distinct from null then format('%s', element) end
            from unnest(elements) with ordinality as listed (element, position) order by position))
    end
$$;
comment on function pgaudit_wf.array_json(anyarray) is
    'An array as jsonb, its elements as text, by which nobody''s cast is run; one of several dimensions as the text that PostgreSQL writes.';

create function pgaudit_wf.json_expression(type oid, expression text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = pgaudit_wf.base_type(json_expression.type));
begin
    return case
        when pgaudit_wf.json_without_casts(info.oid) then
            case when pgaudit_wf.holds_json(info.oid) then format('pgaudit_wf.json_value(to_json(%s))', expression) else expression end
        when info.typcategory = 'A' and info.typelem <> 0 then format('pgaudit_wf.array_json(%s)', expression)
        -- A function takes 100 arguments at most.
        when info.typtype = 'c' and (select count(*) from pg_attribute where attrelid = info.typrelid and attnum > 0 and not attisdropped) between 1 and 50 then (
            select format('case when %s is distinct from null then jsonb_build_object(%s) end', expression, string_agg(
                format('%L, %s', attname, pgaudit_wf.json_expression(atttypid, format('(%s).%I', expression, attname))), ', ' order by attnum))
            from pg_attribute
            where attrelid = info.typrelid and attnum > 0 and not attisdropped)
        else pgaudit_wf.text_expression(info.oid, expression)
    end;
end
$$;
comment on function pgaudit_wf.json_expression(oid, text) is
    'SQL expression for a value of a type, fit to be an argument of jsonb_build_object(): as the server writes it in JSON, or as text where that would run somebody''s cast.';

create function pgaudit_wf.contains_type(type oid, wanted oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = contains_type.type);
begin
    return case
        when info.oid = contains_type.wanted then true
        when info.typtype = 'd' then pgaudit_wf.contains_type(info.typbasetype, contains_type.wanted)
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf.contains_type(info.typelem, contains_type.wanted)
        when info.typtype = 'c' then exists (
            select from pg_attribute
            where attrelid = info.typrelid and attnum > 0 and not attisdropped and pgaudit_wf.contains_type(atttypid, contains_type.wanted))
        else false
    end;
end
$$;
comment on function pgaudit_wf.contains_type(oid, oid) is 'Whether values of a type are or contain values of another.';

create function pgaudit_wf.columns_with_casts(relation oid) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array(
        select attname::text from pg_attribute
        where attrelid = columns_with_casts.relation and attnum > 0 and not attisdropped and atttypid >= 16384
            and exists (
                select from pg_cast join pg_proc on pg_proc.oid = castfunc
                where castsource >= 16384 and proowner <> 10 and pgaudit_wf.contains_type(atttypid, castsource))
        order by attnum)
$$;
comment on function pgaudit_wf.columns_with_casts(oid) is
    'Columns in whose name an expression could run somebody''s code: of a type with a cast by a function that is not the bootstrap superuser''s.';

create function pgaudit_wf.output_settings(type oid, as_text boolean) returns text[]
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = output_settings.type);
begin
    return case
        when info.typtype = 'd' then pgaudit_wf.output_settings(info.typbasetype, output_settings.as_text)
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf.output_settings(info.typelem, output_settings.as_text)
        when info.typtype in ('r', 'm') then (
            select pgaudit_wf.output_settings(rngsubtype, true) from pg_range where info.oid in (rngtypid, rngmultitypid))
        when info.typtype = 'c' then coalesce((
            select array_agg(distinct setting)
            from pg_attribute, unnest(pgaudit_wf.output_settings(atttypid, output_settings.as_text)) as setting
            where attrelid = info.typrelid and attnum > 0 and not attisdropped), '{}')
        when info.typtype = 'e' then '{}'
        -- As JSON, dates and times are ISO 8601 whatever DateStyle says; only the offset of timestamptz follows the session.
        when info.oid in ('date'::regtype, 'timestamp'::regtype, 'time'::regtype) and not output_settings.as_text then '{}'
        when info.oid in ('timestamptz'::regtype, 'timetz'::regtype) and not output_settings.as_text then array['timezone = ''UTC''']
        when info.oid in ('date'::regtype, 'timestamp'::regtype, 'time'::regtype, 'timestamptz'::regtype, 'timetz'::regtype)
            then array['timezone = ''UTC''', 'datestyle = ''ISO, MDY''']
        when info.oid = 'interval'::regtype then array['intervalstyle = ''postgres''']
        when info.oid = 'bytea'::regtype then array['bytea_output = ''hex''']
        when info.oid = 'money'::regtype then array['lc_monetary = ''C''']
        when info.oid = any ('{regclass,regproc,regprocedure,regoper,regoperator,regtype,regrole,regnamespace,regcollation,regconfig,regdictionary}'::regtype[])
            then array['quote_all_identifiers = off']
        when info.oid in ('real'::regtype, 'double precision'::regtype) or info.typcategory = 'G' then array['extra_float_digits = 1']
        when info.typnamespace = 'pg_catalog'::regnamespace then '{}'
        -- An extension's type can depend on anything.
        else array['timezone = ''UTC''', 'datestyle = ''ISO, MDY''', 'intervalstyle = ''postgres''', 'bytea_output = ''hex''',
            'extra_float_digits = 1']
    end;
end
$$;
comment on function pgaudit_wf.output_settings(oid, boolean) is
    'The settings a trigger must pin so that a value of the type, as JSON or as text, is written the same way in every session.';

create function pgaudit_wf.optional_column(template text, column_name text, otherwise text) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- format() refuses a null identifier, also where coalesce() would not use it.
    select case when column_name is null then otherwise else format(template, column_name) end
$$;
comment on function pgaudit_wf.optional_column(text, text, text) is 'A piece of SQL with the column''s name in place of %I, or the other one for a table without it.';

-- sql/core/068_compile_version.sql

-- The part of a workflow table's trigger function that keeps its versions (260_workflow_history.sql).

create type pgaudit_wf.version_ref as (
    version integer,
    content_hash text,
    previous_hash text,
    restored_from integer
);
comment on type pgaudit_wf.version_ref is 'What add_version() tells the trigger about the version it made.';

create function pgaudit_wf.record_value(setting pgaudit_wf.attachment, record_name text, column_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- The generic form must not name a column that could be gone: it reads the row as JSON.
    select case
        when (setting).form = 'generic' then format('(%s -> %L)', case record_name when 'old' then 'before' else 'after' end, column_name)
        when atttypid = 'json'::regtype then pgaudit_wf.field(record_name, column_name) || '::jsonb'
        else pgaudit_wf.json_expression(atttypid, pgaudit_wf.field(record_name, column_name))
    end
    from pg_attribute
    where attrelid = (setting).target and attname = column_name
$$;
comment on function pgaudit_wf.record_value(pgaudit_wf.attachment, text, text) is 'SQL expression for a column of old or new, for either form of trigger.';

create function pgaudit_wf.compiled_names(record jsonb, table_id oid, numbers jsonb, known text[]) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    renamed jsonb;
    names text[];
begin
    if record ?& array(select jsonb_object_keys(numbers)) then
        return record;
    end if;
    select jsonb_object_agg(compiled.key, record -> attname), array_agg(attname::text) into renamed, names
    from jsonb_each(numbers) as compiled
    join pg_attribute on attrelid = table_id and attnum = compiled.value::smallint and not attisdropped
    -- After a restore from a dump the numbers can be others: what had a name of its own then was not renamed.
    where not record ? compiled.key and attname <> all (known);
    return (record - coalesce(names, '{}')) || coalesce(renamed, '{}');
end
$$;
comment on function pgaudit_wf.compiled_names(jsonb, oid, jsonb, text[]) is
    'A row with a workflow''s columns under the names that the trigger was compiled with, for the generic form, which nothing recompiles when one is renamed. numbers: {compiled name: column number}; known: all columns at that time.';

create function pgaudit_wf.follow_names(setting pgaudit_wf.attachment, variable text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce((
        select format(e'\n        %1$s := pgaudit_wf.compiled_names(%1$s, tg_relid, %2$L, %3$L);', variable, jsonb_object_agg(attname, attnum), (setting).columns)
        from pgaudit_wf.workflow_attachment as w
        join pg_attribute on attrelid = w.target and attname = any (array[w.nodes_column, w.edges_column, w.name_column,
            w.description_column, w.visibility_column, w.enabled_column, w.listed_column] || w.listing_columns)
        where w.target = (setting).target
        having count(*) > 0), '')
$$;
comment on function pgaudit_wf.follow_names(pgaudit_wf.attachment, text) is
    'PL/pgSQL of the generic form that reads a workflow''s renamed columns under their compiled names; nothing for other tables.';

create function pgaudit_wf.any_changed(setting pgaudit_wf.attachment, column_names text[]) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select coalesce(string_agg(
        case when (setting).form = 'generic'
            then format('%s is distinct from %s', pgaudit_wf.record_value(setting, 'old', attname), pgaudit_wf.record_value(setting, 'new', attname))
            else pgaudit_wf.changed_expression(pgaudit_wf.describe_column(col, false)) end,
        ' or ' order by array_position(column_names, attname::text)), 'false')
    from pg_attribute as col
    where attrelid = (setting).target and attname = any (column_names));
end
$$;
comment on function pgaudit_wf.any_changed(pgaudit_wf.attachment, text[]) is 'SQL condition that is true when one of the columns differs between old and new.';

create function pgaudit_wf.maybe_changed(setting pgaudit_wf.attachment, column_names text[]) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select coalesce(string_agg(
        case when (setting).form = 'compiled' and (pgaudit_wf.describe_column(col, false)).toastable
            then format('(pg_column_toast_chunk_id(%s) = pg_column_toast_chunk_id(%s)) is not true', pgaudit_wf.field('old', attname), pgaudit_wf.field('new', attname))
            else 'true' end,
        ' or ' order by attnum), 'false')
    from pg_attribute as col
    where attrelid = (setting).target and attname = any (column_names));
end
$$;
comment on function pgaudit_wf.maybe_changed(pgaudit_wf.attachment, text[]) is
    'SQL condition that is false when the columns are surely the same in old and new, found out without reading them.';

create function pgaudit_wf.snapshot_expression(
    setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment, record_name text, nodes text default null, edges text default null) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('jsonb_build_object(%s)', string_agg(
        format('%L, %s', member, coalesce(expression, pgaudit_wf.record_value(setting, record_name, column_name))), ', ' order by position))
    from (values
        (1, 'name', (workflow).name_column, null),
        (2, 'description', (workflow).description_column, null),
        (3, 'visibility', (workflow).visibility_column, null),
        (4, 'enabled', (workflow).enabled_column, null),
        (5, 'nodes', (workflow).nodes_column, nodes),
        (6, 'edges', (workflow).edges_column, edges)
    ) as kept (position, member, column_name, expression)
    where column_name is not null and expression is distinct from ''
$$;
comment on function pgaudit_wf.snapshot_expression(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment, text, text, text) is
    'SQL expression for what a version keeps of a workflow row: name, description, visibility, enabled, nodes, edges. nodes and edges are expressions in place of those columns; empty to leave them out.';

create function pgaudit_wf.graph_assignments(setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment, record_name text, indent text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- In a variable the value is decompressed once, where each mention of old.nodes would do it again; #> '{}' is what does it.
    select format(e'%1$s%2$s_nodes := %3$s #> ''{}'';\n%1$s%2$s_edges := %4$s #> ''{}'';\n', indent, record_name,
        pgaudit_wf.record_value(setting, record_name, (workflow).nodes_column),
        pgaudit_wf.record_value(setting, record_name, (workflow).edges_column))
$$;
comment on function pgaudit_wf.graph_assignments(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment, text, text) is
    'PL/pgSQL that takes nodes and edges of old or new into variables.';

create function pgaudit_wf.version_statements(setting pgaudit_wf.attachment, op text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    workflow pgaudit_wf.workflow_attachment;
    key text;
    organisation text;
begin
    select * into workflow from pgaudit_wf.workflow_attachment as w where w.target = (setting).target;
    if workflow.target is null then
        return '';
    end if;
    key := case when (setting).form = 'generic' then 'event_id'
        else pgaudit_wf.key_expression(setting, case op when 'delete' then 'old' else 'new' end) end;
    if workflow.id_prefix <> '' then
        key := format('%L || %s', workflow.id_prefix, key);
    end if;
    organisation := case
        when (setting).org_column is null or (setting).form = 'generic' or op <> 'update' then 'event_org'
        else pgaudit_wf.org_expression(setting) end;

    if op = 'delete' then
        return format(e'        event_hash := pgaudit_wf.latest_hash(%s);\n', key);
    elsif op = 'insert' then
        return pgaudit_wf.graph_assignments(setting, workflow, 'new', '        ') || format($insert$        event_version := pgaudit_wf.add_version(%1$s, %2$s, 'create', null,
            %3$s, null, null, new_nodes, new_edges);
        event_hash := event_version.content_hash;
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('version', event_version.version);
$insert$, key, organisation, pgaudit_wf.snapshot_expression(setting, workflow, 'new', 'new_nodes', 'new_edges'));
    end if;
    return format($update$        -- What only moves things about on the canvas makes no version.
        if %1$s then
%2$s            definition_changed := not pgaudit_wf.same_definition(old_nodes, old_edges, new_nodes, new_edges);
        end if;
        if definition_changed or %3$s then
            if not definition_changed then
%4$s            end if;
            event_version := pgaudit_wf.add_version(%5$s, %6$s, case when %7$s then 'listing' else 'update' end,
                %8$s,
                %9$s,
                old_nodes, old_edges, new_nodes, new_edges);
            event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('version', event_version.version);
            if event_version.content_hash is distinct from event_version.previous_hash then
                event_diff := coalesce(event_diff, '[]') || jsonb_build_object('op', 'replace', 'path', '/content_hash',
                    'old', event_version.previous_hash, 'value', event_version.content_hash);
            end if;
        end if;
$update$,
        pgaudit_wf.maybe_changed(setting, array[workflow.nodes_column, workflow.edges_column]),
        pgaudit_wf.graph_assignments(setting, workflow, 'old', '            ') || pgaudit_wf.graph_assignments(setting, workflow, 'new', '            '),
        pgaudit_wf.any_changed(setting, array_remove(array[workflow.name_column, workflow.description_column, workflow.visibility_column, workflow.enabled_column], null)
            || workflow.listing_columns),
        pgaudit_wf.graph_assignments(setting, workflow, 'old', '                ') || pgaudit_wf.graph_assignments(setting, workflow, 'new', '                '),
        key, organisation,
        pgaudit_wf.any_changed(setting, workflow.listing_columns),
        coalesce(pgaudit_wf.snapshot_expression(setting, workflow, 'old', '', ''), '''{}''::jsonb'),
        pgaudit_wf.snapshot_expression(setting, workflow, 'new', 'new_nodes', 'new_edges'));
end
$$;
comment on function pgaudit_wf.version_statements(pgaudit_wf.attachment, text) is
    'PL/pgSQL that keeps the versions of a workflow table on update, insert or delete; nothing for other tables.';

-- sql/core/070_compile.sql

-- Writes the trigger function of an attached table. The text is for people too: \sf pgaudit_wf.capture_<table>.

create type pgaudit_wf.capture_column as (
    name text,
    type oid,
    redacted boolean,
    by_text boolean,
    toastable boolean
);
comment on type pgaudit_wf.capture_column is 'A column that a trigger records, with what its type asks for.';

create function pgaudit_wf.describe_column(col pg_attribute, redacted boolean) returns pgaudit_wf.capture_column
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select row(
        (col).attname::text,
        (col).atttypid,
        redacted,
        pgaudit_wf.compare_by_text((col).atttypid)
            or exists (select from pg_collation where oid = (col).attcollation and not collisdeterministic),
        -- Only types that tend to be long; and the function that compares two out-of-line values unread is new in PostgreSQL 17.
        (col).attlen = -1 and current_setting('server_version_num')::integer >= 170000
            and (col).atttypid in ('jsonb'::regtype, 'json'::regtype, 'xml'::regtype, 'bytea'::regtype, 'tsvector'::regtype)
    )::pgaudit_wf.capture_column
$$;
comment on function pgaudit_wf.describe_column(pg_attribute, boolean) is 'A column with what its type asks for.';

create function pgaudit_wf.hidden_columns(setting pgaudit_wf.attachment) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A virtual generated column is not in the row that a trigger sees.
    select array(
        select attname::text from pg_attribute
        where attrelid = (setting).target and attnum > 0 and not attisdropped
            and (attname = any ((setting).ignore || (select pgaudit_wf.definition_columns((setting).target))) or attgenerated = 'v')
        order by attnum)
$$;
comment on function pgaudit_wf.hidden_columns(pgaudit_wf.attachment) is
    'The columns of an attached table that its events leave out: ignored ones, a workflow''s graph, and those that are computed when read.';

create function pgaudit_wf.capture_columns(setting pgaudit_wf.attachment) returns setof pgaudit_wf.capture_column
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.describe_column(col, attname = any ((setting).redact))
    from pg_attribute as col
    where attrelid = (setting).target and attnum > 0 and not attisdropped and attname <> all ((select pgaudit_wf.hidden_columns(setting))::text[])
    order by attnum
$$;
comment on function pgaudit_wf.capture_columns(pgaudit_wf.attachment) is 'The columns that the trigger of an attached table records, in their order.';

create function pgaudit_wf.changed_expression(col pgaudit_wf.capture_column) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format(
        case
            -- Byte by byte, so that no operator of anybody's is looked for; what then reads the same has not changed.
            when not pgaudit_wf.is_built_in((col).type) then
                '(record_image_ne(row(%1$s), row(%2$s)) and (%3$s) collate "C" is distinct from (%4$s) collate "C")'
            -- Equal TOAST ids are the same stored value: then the value, which may be long, is not read at all.
            when (col).toastable then '((pg_column_toast_chunk_id(%1$s) = pg_column_toast_chunk_id(%2$s)) is not true and '
                || case when (col).by_text then '%1$s::text collate "C" is distinct from %2$s::text collate "C")' else '%1$s is distinct from %2$s)' end
            when (col).by_text then '%1$s::text collate "C" is distinct from %2$s::text collate "C"'
            else '%1$s is distinct from %2$s'
        end,
        before, after, pgaudit_wf.text_expression((col).type, before), pgaudit_wf.text_expression((col).type, after))
    from (select pgaudit_wf.field('old', (col).name) as before, pgaudit_wf.field('new', (col).name) as after) as sides
$$;
comment on function pgaudit_wf.changed_expression(pgaudit_wf.capture_column) is 'SQL condition that is true when the column differs between old and new.';

create function pgaudit_wf.shown_expression(col pgaudit_wf.capture_column, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A composite of nulls "is null", and yet is a value.
    select case when (col).redacted then format('case when %s is distinct from null then ''[redacted]'' end', pgaudit_wf.field(record_name, (col).name))
        else pgaudit_wf.json_expression((col).type, pgaudit_wf.field(record_name, (col).name)) end
$$;
comment on function pgaudit_wf.shown_expression(pgaudit_wf.capture_column, text) is 'SQL expression for the column''s value as it may be shown.';

create function pgaudit_wf.pointer(key text) returns text
language sql immutable strict parallel safe
as $$ select '/' || replace(replace(key, '~', '~0'), '/', '~1') $$;
comment on function pgaudit_wf.pointer(text) is 'JSON pointer to a member (RFC 6901, section 3).';

create function pgaudit_wf.key_expression(setting pgaudit_wf.attachment, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when cardinality((setting).id_columns) > 1 then format('pgaudit_wf.bounded_key(jsonb_build_array(%s)::text)', as_json)
        when short then as_text
        else format('pgaudit_wf.bounded_key(%s)', as_text)
    end
    from (
        select
            string_agg(pgaudit_wf.json_expression(atttypid, pgaudit_wf.field(record_name, key_column)), ', ' order by position) as as_json,
            min(pgaudit_wf.text_expression(atttypid, pgaudit_wf.field(record_name, key_column))) as as_text,
            bool_and(attlen > 0) as short
        from unnest((setting).id_columns) with ordinality as k (key_column, position)
        join pg_attribute on attrelid = (setting).target and attname = key_column
    ) as key_columns
$$;
comment on function pgaudit_wf.key_expression(pgaudit_wf.attachment, text) is 'SQL expression for resource_id over the given record (old or new).';

create function pgaudit_wf.key_condition(setting pgaudit_wf.attachment, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A single key of a built-in type is compared in it, so that its index is used; never in a domain, whose checks are somebody's code.
    select coalesce((
            select format('%I.%I = $1::%s', record_name, attname, format_type(pgaudit_wf.base_type(atttypid), -1))
            from pg_attribute
            where attrelid = (setting).target and attname = (setting).id_columns[1] and cardinality((setting).id_columns) = 1
                and pgaudit_wf.is_built_in(atttypid)),
        format('%s = $1', pgaudit_wf.key_expression(setting, record_name)))
$$;
comment on function pgaudit_wf.key_condition(pgaudit_wf.attachment, text) is 'SQL condition that picks the row of an attached table with resource_id $1.';

create function pgaudit_wf.bounded_key(key text) returns text
language sql stable parallel safe
as $$
    -- An index entry has to fit a third of a page. Not immutable, as convert_to() is not: then it would not be inlined.
    select case when octet_length(key) > 1024 then 'sha256:' || encode(sha256(convert_to(key, 'UTF8')), 'hex') else key end
$$;
comment on function pgaudit_wf.bounded_key(text) is 'A key as resource_id: itself, or its SHA-256 as sha256:<hex> when it is longer than 1,024 bytes.';

create function pgaudit_wf.rule_could_cast(target oid, condition text) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- By its text alone, so rather too often: a mention of the column, or of the row as a whole.
    select coalesce(bool_or(case when name ~ '^\w+$' then condition ~* ('\m' || name || '\M') else strpos(condition, replace(name, '"', '""')) > 0 end
        or condition ~* '\m(old|new)\M\s*($|[^.[:space:]]|\.\s*\*)'), false)
    from unnest(pgaudit_wf.columns_with_casts(target)) as name
$$;
comment on function pgaudit_wf.rule_could_cast(oid, text) is
    'Whether a rule''s condition may run, with our rights, a cast that somebody made of a type of the table''s columns: it is then left out.';

create function pgaudit_wf.refuse_casts(relation oid, conditions text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from pg_attribute where attrelid = relation and attnum > 0 and not attisdropped and atttypid >= 16384)
        and pgaudit_wf.rule_could_cast(relation, conditions)
    then
        raise exception 'a column of % has a type with a cast that this could run: %', relation::regclass, conditions using errcode = 'PA003';
    end if;
end
$$;
comment on function pgaudit_wf.refuse_casts(oid, text) is
    'Raises PA003 where a condition over the table''s columns could run a cast that somebody made, with our rights; for the generic form.';

create function pgaudit_wf.action_statements(setting pgaudit_wf.attachment, op text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with rule as (
        select id, position, condition, action from pgaudit_wf.action_rule
        where action_rule.resource_type = (setting).resource_type and action_rule.op = $2
            and not pgaudit_wf.rule_could_cast((setting).target, condition)
    ), fallback as (
        select quote_literal((setting).resource_type || case op when 'insert' then '.created' when 'update' then '.updated' else '.deleted' end) as action
    )
    select case when exists (select from rule where condition is not null) then format($rules$
        begin%4$s
            event_action := case
%1$s                else %2$s
            end;
        exception
            -- A rule over something that was renamed or dropped meanwhile costs its meaning, not the write.
            when others then
                if sqlstate ~ '^(40|53|57)' then
                    raise;
                end if;
                event_action := %2$s;
                raise warning 'an action rule of %% failed (SQLSTATE %%), and the change is recorded as %%', %3$L, sqlstate, event_action
                    using hint = 'pgaudit_wf.doctor() names the rule.';
        end;$rules$,
            (
                select string_agg(format(e'                when %s then %L\n',
                    case when strpos(coalesce(condition, 'true'), '--') > 0 then condition || e'\n               ' else coalesce(condition, 'true') end,
                    rule.action), '' order by position, id)
                from rule
            ), fallback.action, (setting).resource_type,
            -- There, nobody tells us of a cast that is made later.
            case when (setting).form = 'generic' then 
                (select format(e'\n            perform pgaudit_wf.refuse_casts(tg_relid, %L);', string_agg(condition, e'\n')) from rule) else '' end)
        else format(e'\n        event_action := %s;',
            coalesce((select quote_literal(rule.action) from rule order by position, id limit 1), fallback.action)) end
    from fallback
$$;
comment on function pgaudit_wf.action_statements(pgaudit_wf.attachment, text) is
    'PL/pgSQL that names the action of an insert, update or delete, from action_rule.';

create function pgaudit_wf.row_object(columns pgaudit_wf.capture_column[], record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A function takes 100 arguments at most.
    select coalesce(string_agg(format(e'jsonb_build_object(\n                %s)', listed), e'\n            || ' order by chunk), '''{}''::jsonb')
    from (
        select (position - 1) / 50 as chunk,
            string_agg(format('%L, %s', name,
                pgaudit_wf.shown_expression(row(name, type, redacted, by_text, toastable)::pgaudit_wf.capture_column, record_name)),
                e',\n                ' order by position) as listed
        from unnest(columns) with ordinality as col (name, type, redacted, by_text, toastable, position)
        group by chunk
    ) as chunks
$$;
comment on function pgaudit_wf.row_object(pgaudit_wf.capture_column[], text) is
    'SQL expression for the given columns of a record as a jsonb object, redacted ones hidden; no other column is read.';

create function pgaudit_wf.row_expression(setting pgaudit_wf.attachment, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- The row as a whole is quickest, but reads each column: not one that is to be hidden and may be long, nor one that it would turn
    -- into JSON by somebody's cast or cannot turn into JSON.
    select case when bool_and(pgaudit_wf.json_without_casts(atttypid) and not pgaudit_wf.holds_json(atttypid)
                and (attlen > 0 or attgenerated = 'v' or (attname <> all ((select pgaudit_wf.hidden_columns(setting))::text[]) and attname <> all ((setting).redact))))
        then format('to_jsonb(%I)', record_name)
            || case when pgaudit_wf.hidden_columns(setting) = '{}' then '' else format(e'\n            - %L::text[]', pgaudit_wf.hidden_columns(setting)) end
            || coalesce((
                select e'\n            || ' || pgaudit_wf.row_object(array_agg(col), record_name)
                from pgaudit_wf.capture_columns(setting) as col where (col).redacted
                having count(*) > 0), '')
        else pgaudit_wf.row_object(array(select pgaudit_wf.capture_columns(setting)), record_name) end
    from pg_attribute
    where attrelid = (setting).target and attnum > 0 and not attisdropped
$$;
comment on function pgaudit_wf.row_expression(pgaudit_wf.attachment, text) is 'SQL expression for a whole row as jsonb, less ignored columns and a workflow''s graph, redacted columns hidden.';

create function pgaudit_wf.update_statements(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- One statement a column: PL/pgSQL evaluates such simple expressions several times faster than one long expression.
    select coalesce(string_agg(format(
        e'        if %s then\n'
        '            event_diff := coalesce(event_diff, ''[]'') || jsonb_build_object(''op'', ''replace'', ''path'', %L,\n'
        '                ''old'', %s, ''value'', %s);\n'
        '        end if;\n',
        pgaudit_wf.changed_expression(col), pgaudit_wf.pointer((col).name),
        pgaudit_wf.shown_expression(col, 'old'), pgaudit_wf.shown_expression(col, 'new')
        ), ''), '')
    from pgaudit_wf.capture_columns(setting) as col
$$;
comment on function pgaudit_wf.update_statements(pgaudit_wf.attachment) is 'PL/pgSQL that collects the changed columns of an update into event_diff.';

create function pgaudit_wf.column_text(setting pgaudit_wf.attachment, column_name text, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.text_expression(atttypid, pgaudit_wf.field(record_name, column_name))
    from pg_attribute where attrelid = (setting).target and attname = column_name and attnum > 0
$$;
comment on function pgaudit_wf.column_text(pgaudit_wf.attachment, text, text) is
    'SQL expression for a column of a record as text; null where the table has no such column (any more).';

create function pgaudit_wf.org_expression(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('left(coalesce(%s, %s), 255)',
        pgaudit_wf.column_text(setting, (setting).org_column, 'new'), pgaudit_wf.column_text(setting, (setting).org_column, 'old'))
$$;
comment on function pgaudit_wf.org_expression(pgaudit_wf.attachment) is
    'SQL expression for the organization of an updated row: the new one, or the old one of a row that has left it.';

create function pgaudit_wf.assignments(setting pgaudit_wf.attachment, record_name text, on_update boolean) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
            when org is null then ''
            when record_name = 'new' and on_update then (
                select format(e'\n        event_org := %s;'
                    '\n        if %s then'
                    '\n            event_metadata := coalesce(event_metadata, ''{}'') || jsonb_build_object(''previous_org_id'', %s);'
                    '\n        end if;', pgaudit_wf.org_expression(setting), pgaudit_wf.changed_expression(pgaudit_wf.describe_column(col, false)),
                    pgaudit_wf.json_expression(atttypid, pgaudit_wf.field('old', attname)))
                from pg_attribute as col where attrelid = (setting).target and attname = (setting).org_column)
            else format(e'\n        event_org := left(%s, 255);', org)
        end
        || case when label is null then '' else format(e'\n        event_label := left(%s, 255);', label) end
    from (select pgaudit_wf.column_text(setting, (setting).org_column, record_name) as org,
        pgaudit_wf.column_text(setting, (setting).label_column, record_name) as label) as taken
$$;
comment on function pgaudit_wf.assignments(pgaudit_wf.attachment, text, boolean) is 'PL/pgSQL that takes org and label from the given record.';

create function pgaudit_wf.truncate_statements(setting pgaudit_wf.attachment) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select format(e'        event_action := %L;\n        event_metadata := jsonb_build_object(''table'', format(''%%I.%%I'', tg_table_schema, tg_table_name));',
        (setting).resource_type || '.truncated')
$$;
comment on function pgaudit_wf.truncate_statements(pgaudit_wf.attachment) is 'PL/pgSQL for a TRUNCATE: the one event it makes names the table that was emptied.';

create function pgaudit_wf.compiled_body(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format($body$
    if tg_op = 'UPDATE' then
%1$s%14$s        if event_diff is null then
            return null;
        end if;
        event_id := %2$s;%3$s%13$s%5$s
    elsif tg_op = 'INSERT' then
        event_id := %2$s;%4$s
%15$s        event_diff := jsonb_build_array(jsonb_build_object('op', 'add', 'path', '', 'value', %6$s%17$s));%7$s
    elsif tg_op = 'DELETE' then
        event_id := %9$s;%10$s
%16$s        event_diff := jsonb_build_array(jsonb_build_object('op', 'remove', 'path', '', 'old', %8$s%17$s));%11$s
    else
%12$s
    end if;$body$,
        pgaudit_wf.update_statements(setting),
        pgaudit_wf.key_expression(setting, 'new'),
        (
            select format(e'\n        if %s then\n            event_previous_id := %s;\n        end if;',
                string_agg(pgaudit_wf.changed_expression(col), ' or '), pgaudit_wf.key_expression(setting, 'old'))
            from pgaudit_wf.capture_columns(setting) as col where (col).name = any ((setting).id_columns)
        ),
        pgaudit_wf.assignments(setting, 'new', false),
        pgaudit_wf.action_statements(setting, 'update'),
        pgaudit_wf.row_expression(setting, 'new'),
        pgaudit_wf.action_statements(setting, 'insert'),
        pgaudit_wf.row_expression(setting, 'old'),
        pgaudit_wf.key_expression(setting, 'old'),
        pgaudit_wf.assignments(setting, 'old', false),
        pgaudit_wf.action_statements(setting, 'delete'),
        pgaudit_wf.truncate_statements(setting),
        pgaudit_wf.assignments(setting, 'new', true),
        pgaudit_wf.version_statements(setting, 'update'),
        pgaudit_wf.version_statements(setting, 'insert'),
        pgaudit_wf.version_statements(setting, 'delete'),
        case when pgaudit_wf.definition_columns((setting).target) <> '{}' then ' || jsonb_build_object(''content_hash'', event_hash)' else '' end)
$$;
comment on function pgaudit_wf.compiled_body(pgaudit_wf.attachment) is 'The part of a compiled trigger function that works out what changed.';

create type pgaudit_wf.generic_setting as (
    known text[],
    ignore text[],
    redact text[],
    redact_numbers smallint[]
);
comment on type pgaudit_wf.generic_setting is
    'What a trigger of the generic form knows of its table''s columns: those that were there, and which it hides, the redacted ones by number too (0: it was not there).';

create function pgaudit_wf.generic_columns(table_id oid, setting pgaudit_wf.generic_setting) returns pgaudit_wf.capture_column[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Nobody says when a column is renamed. Once a redacted one is no longer where it was, under its name, any that was not there at the
    -- time of attach() may be it; the key is shown all the same, as it cannot be redacted.
    select array(
        select pgaudit_wf.describe_column(col, attname = any ((setting).redact)
            or exists (
                select from unnest((setting).redact, (setting).redact_numbers) as secret (name, number)
                where secret.number = attnum and secret.name <> attname)
            or (attname <> all ((setting).known)
                and exists (
                    select from unnest((setting).redact, (setting).redact_numbers) as secret (name, number)
                    where secret.number > 0 and not exists (
                        select from pg_attribute as other
                        where other.attrelid = table_id and other.attnum = secret.number and other.attname = secret.name and not other.attisdropped))
                and not exists (select from pg_index where indrelid = table_id and indisprimary and attnum = any (indkey))))
        from pg_attribute as col
        where attrelid = table_id and attnum > 0 and not attisdropped and attgenerated <> 'v' and attname <> all ((setting).ignore)
        order by attnum)
$$;
comment on function pgaudit_wf.generic_columns(oid, pgaudit_wf.generic_setting) is 'The columns of a table as a trigger of the generic form shows them now. After a redacted column was renamed, dropped or restored elsewhere, new columns are hidden too until attach() is called again.';

create function pgaudit_wf.generic_row(record anyelement, setting pgaudit_wf.generic_setting) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    table_id constant oid := (select typrelid from pg_type where oid = pg_typeof(record));
    shown jsonb;
begin
    if cardinality((setting).redact) = 0 and not exists (
        select from pg_attribute
        where attrelid = table_id and attnum > 0 and not attisdropped
            and ((attname = any ((setting).ignore) and attlen < 0) or attgenerated = 'v' or (atttypid >= 16384 and not pgaudit_wf.json_without_casts(atttypid))))
    then
        begin
            return to_jsonb(record) - (setting).ignore;
        exception
            -- json can hold what jsonb cannot.
            when data_exception or program_limit_exceeded then
                null;
        end;
    end if;
    execute format('select %s from (select ($1).*) as r', pgaudit_wf.row_object(pgaudit_wf.generic_columns(table_id, setting), 'r')) into shown using record;
    return shown;
end
$$;
comment on function pgaudit_wf.generic_row(anyelement, pgaudit_wf.generic_setting) is
    'A row as it may be shown, for triggers of the generic form: without ignored columns, redacted ones hidden; what is hidden is not read.';

create function pgaudit_wf.generic_hidden_changes(before anyelement, after anyelement, setting pgaudit_wf.generic_setting) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    changed text[];
begin
    if cardinality((setting).redact) > 0 then
        execute (
            select format('select array_remove(array[%s]::text[], null) from (select ($1).*) as old, (select ($2).*) as new',
                string_agg(format('case when record_image_ne(row(old.%1$I), row(new.%1$I)) then %1$L end', name), ', '))
            from unnest(pgaudit_wf.generic_columns((select typrelid from pg_type where oid = pg_typeof(before)), setting)) as col
            where redacted)
            into changed using before, after;
    end if;
    return coalesce(changed, '{}');
end
$$;
comment on function pgaudit_wf.generic_hidden_changes(anyelement, anyelement, pgaudit_wf.generic_setting) is
    'The redacted columns that an update changed, for triggers of the generic form.';

create function pgaudit_wf.generic_diff(before jsonb, after jsonb, hidden_changes text[]) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_agg(jsonb_build_object('op', 'replace', 'path', pgaudit_wf.pointer(key), 'old', before -> key, 'value', value) order by key)
    from jsonb_each(after)
    where before -> key is distinct from value or key = any (hidden_changes)
$$;
comment on function pgaudit_wf.generic_diff(jsonb, jsonb, text[]) is 'JSON Patch between two rows of one table, for triggers of the generic form.';

create function pgaudit_wf.generic_key(record jsonb, id_columns text[], table_id oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.bounded_key(case
        when cardinality(names) > 1 then (select jsonb_agg(record -> key_column order by position) from unnest(names) with ordinality as k (key_column, position))::text
        else record ->> names[1]
    end)
    from (
        -- A key column that is gone was renamed: ask the primary key.
        select case when record ?& generic_key.id_columns then generic_key.id_columns else array(
            select attname::text
            from pg_index, unnest(indkey) with ordinality as k (key_number, position)
            join pg_attribute on attrelid = generic_key.table_id and attnum = key_number
            where indrelid = generic_key.table_id and indisprimary
            order by position
        ) end as names
    ) as key_names
$$;
comment on function pgaudit_wf.generic_key(jsonb, text[], oid) is 'resource_id of a row, for triggers of the generic form.';

create function pgaudit_wf.columns_of(relation oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- By name: in a partition they can stand in another order.
    select string_agg(attname || ':' || atttypid, ',' order by attname) from pg_attribute
    where attrelid = columns_of.relation and attnum > 0 and not attisdropped
$$;
comment on function pgaudit_wf.columns_of(oid) is 'The names and types of a relation''s columns, to tell whether they are still what a trigger of the generic form was written for.';

create function pgaudit_wf.generic_of(setting pgaudit_wf.attachment) returns pgaudit_wf.generic_setting
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select row((setting).columns, (setting).ignore, (setting).redact, array(
        select coalesce((select attnum from pg_attribute where attrelid = (setting).target and attname = name and not attisdropped), 0)::smallint
        from unnest((setting).redact) with ordinality as secret (name, position) order by position))::pgaudit_wf.generic_setting
$$;
comment on function pgaudit_wf.generic_of(pgaudit_wf.attachment) is 'What a trigger of the generic form is to know of its table''s columns.';

create function pgaudit_wf.describe_generic(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('row(%L::text[], %L::text[], %L::text[], %L::smallint[])::pgaudit_wf.generic_setting', (g).known, (g).ignore, (g).redact, (g).redact_numbers)
    from (select pgaudit_wf.generic_of(setting) as g) as described
$$;
comment on function pgaudit_wf.describe_generic(pgaudit_wf.attachment) is 'SQL expression for what a trigger of the generic form knows of its table''s columns.';

create function pgaudit_wf.generic_body(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format($body$
    as_attached := pgaudit_wf.columns_of(tg_relid) = %15$L;
    if tg_op in ('UPDATE', 'DELETE') then
        if as_attached then
            before := %16$s;
        else
            before := pgaudit_wf.generic_row(old, setting);%1$s
        end if;
        shown_before := before - %5$L::text[];
    end if;
    if tg_op in ('UPDATE', 'INSERT') then
        if as_attached then
            after := %17$s;
        else
            after := pgaudit_wf.generic_row(new, setting);%2$s
        end if;
        shown_after := after - %5$L::text[];
    end if;
    if tg_level = 'ROW' then
        event_id := pgaudit_wf.generic_key(coalesce(after, before), %3$L, tg_relid);
        event_label := left(nullif(coalesce(shown_after, shown_before) ->> %14$L, '[redacted]'), 255);
        %4$s
    end if;
    if tg_op = 'UPDATE' then
        if as_attached then
            hidden_changes := %18$s;
        else
            hidden_changes := pgaudit_wf.generic_hidden_changes(old, new, setting);
        end if;
        event_diff := pgaudit_wf.generic_diff(shown_before, shown_after, hidden_changes);
%6$s        if event_diff is null then
            return null;
        end if;
        if pgaudit_wf.generic_key(before, %3$L, tg_relid) is distinct from event_id then
            event_previous_id := pgaudit_wf.generic_key(before, %3$L, tg_relid);
        end if;%7$s
    elsif tg_op = 'INSERT' then
%8$s        event_diff := jsonb_build_array(jsonb_build_object('op', 'add', 'path', '', 'value', shown_after%9$s));%10$s
    elsif tg_op = 'DELETE' then
%11$s        event_diff := jsonb_build_array(jsonb_build_object('op', 'remove', 'path', '', 'old', shown_before%9$s));%12$s
    else
%13$s
    end if;$body$,
        pgaudit_wf.follow_names(setting, 'before'),
        pgaudit_wf.follow_names(setting, 'after'),
        (setting).id_columns,
        case when (setting).org_column is null then '-- no org column: app.org_id is taken'
            else format(
                e'event_org := left(nullif(coalesce(after ->> %1$L, before ->> %1$L), ''[redacted]''), 255);'
                '\n        if tg_op = ''UPDATE'' and before -> %1$L is distinct from after -> %1$L then'
                '\n            event_metadata := coalesce(event_metadata, ''{}'') || jsonb_build_object(''previous_org_id'', before -> %1$L);'
                '\n        end if;', (setting).org_column) end,
        pgaudit_wf.definition_columns((setting).target),
        pgaudit_wf.version_statements(setting, 'update'),
        pgaudit_wf.action_statements(setting, 'update'),
        pgaudit_wf.version_statements(setting, 'insert'),
        case when pgaudit_wf.definition_columns((setting).target) <> '{}' then ' || jsonb_build_object(''content_hash'', event_hash)' else '' end,
        pgaudit_wf.action_statements(setting, 'insert'),
        pgaudit_wf.version_statements(setting, 'delete'),
        pgaudit_wf.action_statements(setting, 'delete'),
        pgaudit_wf.truncate_statements(setting),
        (setting).label_column,
        pgaudit_wf.columns_of((setting).target),
        pgaudit_wf.row_object(pgaudit_wf.generic_columns((setting).target, pgaudit_wf.generic_of(setting)), 'old'),
        pgaudit_wf.row_object(pgaudit_wf.generic_columns((setting).target, pgaudit_wf.generic_of(setting)), 'new'),
        (
            select coalesce('array_remove(array[' || string_agg(
                format('case when record_image_ne(row(%s), row(%s)) then %L end', pgaudit_wf.field('old', name), pgaudit_wf.field('new', name), name), ', ') || ']::text[], null)', '''{}''::text[]')
            from unnest(pgaudit_wf.generic_columns((setting).target, pgaudit_wf.generic_of(setting))) as col where redacted))
$$;
comment on function pgaudit_wf.generic_body(pgaudit_wf.attachment) is 'The part of a generic trigger function that works out what changed.';

create function pgaudit_wf.shape_of(relation oid) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select md5(string_agg(concat_ws(',', attnum, attname, atttypid, attcollation, attgenerated, (
            select pgaudit_wf.shape_of(c.oid) from pg_class as c
            join pg_type as t on t.typrelid = c.oid
            where atttypid >= 16384 and t.typtype = 'c' and pgaudit_wf.contains_type(atttypid, t.oid) and t.oid <> (select reltype from pg_class where oid = shape_of.relation)
            order by c.oid limit 1)), ';' order by attnum))
        from pg_attribute where attrelid = shape_of.relation and attnum > 0 and not attisdropped);
end
$$;
comment on function pgaudit_wf.shape_of(oid) is 'A fingerprint of the names and types of a relation''s columns.';

create function pgaudit_wf.capture_settings(setting pgaudit_wf.attachment) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select array(
        select distinct pinned
        from (
            select unnest(pgaudit_wf.output_settings(atttypid, attname = any ((setting).id_columns || array[coalesce((setting).org_column, ''), coalesce((setting).label_column, '')])))
            from pg_attribute
            where attrelid = (setting).target and attnum > 0 and not attisdropped and attname <> all ((setting).ignore || (setting).redact)
            -- The generic form does not know what columns will come.
            union all
            select unnest(array['timezone = ''UTC''', 'datestyle = ''ISO, MDY''', 'intervalstyle = ''postgres''', 'bytea_output = ''hex''',
                'lc_monetary = ''C''', 'extra_float_digits = 1', 'quote_all_identifiers = off'])
            where (setting).form = 'generic'
        ) as type_setting (pinned)
        order by pinned)
$$;
comment on function pgaudit_wf.capture_settings(pgaudit_wf.attachment) is
    'The settings that an attached table''s trigger pins, so that what it records does not depend on the session.';

create function pgaudit_wf.capture_body(setting pgaudit_wf.attachment) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    statements text;
begin
    statements := case (setting).form when 'compiled' then pgaudit_wf.compiled_body(setting) else pgaudit_wf.generic_body(setting) end
        || case when pgaudit_wf.definition_columns((setting).target) <> '{}' then format($restored$
    if event_version.restored_from is not null then
        event_action := %L;
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('restored_from', event_version.restored_from);
    end if;$restored$, (setting).resource_type || '.restored') else '' end
        || format($insert$
    if event_label is not null then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('label', event_label);
    end if;
    if current_setting('app.reason', true) <> '' then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('reason', pgaudit_wf.context_reason());
    end if;
    if event_previous_id is not null then
        event_metadata := coalesce(event_metadata, '{}') || jsonb_build_object('previous_resource_id', event_previous_id);
        insert into pgaudit_wf.key_change (resource_type, old_id, new_id, org_id)
        select %1$L, event_previous_id, event_id, event_org where event_id is not null
        on conflict on constraint key_change_pkey do nothing;
    end if;

    insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
    values (event_org, event_action, %1$L, event_id, true, event_diff, coalesce(event_metadata, '{}'));$insert$,
        (setting).resource_type);

    if (setting).on_failure = 'warn' then
        statements := e'\n    begin' || statements || format($warn$
    exception
        when others then
            perform pgaudit_wf.count_failure(%1$L, tg_op, sqlstate);
            raise warning '%% of %% went through unrecorded (SQLSTATE %%)', tg_op, %1$L, sqlstate;
    end;$warn$, (setting).target);
    end if;

    return format($body$
-- Records every change of an attached table; written by pgaudit_wf.attach().
-- To change it, attach the table again or edit pgaudit_wf.action_rule. Columns as of %s.
declare
    event_id text;
    event_previous_id text;
    event_org text%s;
    event_label text;
    event_action text;
    event_diff jsonb;
    event_metadata jsonb;%s%s
begin%s%s
    return null;
end
$body$,
        -- PL/pgSQL keeps plans by the types of a row's columns: another type must make it another function.
        pgaudit_wf.shape_of((setting).target),
        case when (setting).org_column = any ((setting).columns) then '' else ' := pgaudit_wf.context_value(''app.org_id'')' end,
        case when (setting).form = 'generic' then format(
            e'\n    setting constant pgaudit_wf.generic_setting := %s;\n    as_attached boolean;\n    hidden_changes text[];\n    before jsonb;\n    after jsonb;\n    shown_before jsonb;\n    shown_after jsonb;',
            pgaudit_wf.describe_generic(setting)) else '' end,
        case when pgaudit_wf.definition_columns((setting).target) <> '{}' then
            e'\n    event_hash text;\n    event_version pgaudit_wf.version_ref;\n    definition_changed boolean := false;\n    old_nodes jsonb;\n    old_edges jsonb;\n    new_nodes jsonb;\n    new_edges jsonb;' else '' end,
        pgaudit_wf.check_place((setting).target, (setting).function_name),
        statements);
end
$$;
comment on function pgaudit_wf.capture_body(pgaudit_wf.attachment) is 'The body of an attached table''s trigger function.';

-- sql/core/080_attach.sql

-- attach() and detach(): what a user calls to have a table audited.

create function pgaudit_wf.can_follow_ddl() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select count(*) = 3 from pg_event_trigger
    where evtname in ('pgaudit_wf_after_ddl', 'pgaudit_wf_after_drop', 'pgaudit_wf_follow_as_author') and evtenabled in ('O', 'A')
$$;
comment on function pgaudit_wf.can_follow_ddl() is
    'Whether the event triggers that recompile triggers after DDL are there; without them attach() compiles the generic form.';

create function pgaudit_wf.capture_function_name(target regclass) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Distinct tables may look alike once the schema and the name are joined or cut.
    select case
        when octet_length(plain) <= 63 and not exists (select from pgaudit_wf.attachment where function_name = plain) then plain
        else left(regexp_replace(plain, '[^ -~]', '_', 'g'), 40) || '_' || left(md5(n.nspname || '.' || quote_ident(c.relname)), 12)
    end
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace,
    lateral (select concat('capture_', case when n.nspname <> 'public' then n.nspname || '_' end, c.relname) as plain) as name
    where c.oid = capture_function_name.target
$$;
comment on function pgaudit_wf.capture_function_name(regclass) is 'Name for the trigger function of a table, such as capture_invoice.';

create function pgaudit_wf.check_attachable(target regclass) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    class pg_class := (select c from pg_class as c where c.oid = check_attachable.target);
    related regclass;
begin
    if check_attachable.target is null or class.oid is null then
        raise exception 'there is no such table to attach' using errcode = 'PA004';
    end if;
    if class.relkind not in ('r', 'p') then
        raise exception '% is not a table', check_attachable.target
            using errcode = 'PA004', hint = 'Only tables and partitioned tables can be attached.';
    end if;
    if class.relpersistence = 't' then
        raise exception '% is a temporary table', check_attachable.target using errcode = 'PA004';
    end if;
    if class.relnamespace in ('pgaudit_wf'::regnamespace, 'pg_catalog'::regnamespace, 'information_schema'::regnamespace) then
        raise exception '% belongs to the system and cannot be attached', check_attachable.target using errcode = 'PA004';
    end if;
    select a.target into related
    from pgaudit_wf.attachment as a
    where a.target <> check_attachable.target
        and (a.target in (select relid from pg_partition_ancestors(check_attachable.target))
            or check_attachable.target in (select relid from pg_partition_ancestors(a.target)));
    if found then
        raise exception '% is already recorded through %', check_attachable.target, related
            using errcode = 'PA004', hint = format('Detach %s first: a partition and its parent cannot both be attached.', related);
    end if;
    if not pg_has_role(current_user, class.relowner, 'usage') then
        raise exception '% must own % to attach it', current_user, check_attachable.target
            using errcode = 'PA004', hint = format('Run attach as %I or as a superuser.', class.relowner::regrole::text);
    end if;
end
$$;
comment on function pgaudit_wf.check_attachable(regclass) is 'Raises PA004 if the table cannot be attached, saying why.';

create function pgaudit_wf.check_columns(setting pgaudit_wf.attachment, mentioned text[] default null) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    problem record;
begin
    select role, name into problem
    from (
        select 'id_columns' as role, unnest((setting).id_columns) as name
        union all select 'org_column', (setting).org_column
        union all select 'label_column', (setting).label_column
        union all select 'ignore', unnest((setting).ignore)
        union all select 'redact', unnest((setting).redact)
    ) as named
    where name <> all ((setting).columns) and (role = 'id_columns' or mentioned is null or name = any (mentioned));
    if found then
        raise exception '% has no column "%", named in %', (setting).target, problem.name, problem.role
            using errcode = 'PA002',
                hint = format('Its columns are %s.', array_to_string(array(select quote_ident(name) from unnest((setting).columns) as name), ', '));
    end if;
    select name into problem from unnest((setting).id_columns) as name where name = any ((setting).ignore);
    if found then
        raise exception 'column "%" of % is both in ignore and in id_columns', problem.name, (setting).target
            using errcode = 'PA002', hint = 'A change of what identifies a row must be recorded, or the row''s story ends there.';
    end if;
    select role, name into problem
    from (
        select 'id_columns' as role, unnest((setting).id_columns) as name
        union all select 'org_column', (setting).org_column
        union all select 'label_column', (setting).label_column
    ) as shown
    where name = any ((setting).redact);
    if found then
        raise exception 'column "%" of % is both in redact and in %', problem.name, (setting).target, problem.role
            using errcode = 'PA002', hint = 'What names a row in the log cannot be kept out of it; choose another column.';
    end if;
    select role, name into problem
    from (
        select 'id_columns' as role, unnest((setting).id_columns) as name
        union all select 'org_column', (setting).org_column
        union all select 'label_column', (setting).label_column
    ) as read
    join pg_attribute on attrelid = (setting).target and attname = name and attgenerated = 'v';
    if found then
        raise exception 'column "%" of % is computed when read, and cannot be in %', problem.name, (setting).target, problem.role
            using errcode = 'PA002', hint = 'Name stored columns.';
    end if;
end
$$;
comment on function pgaudit_wf.check_columns(pgaudit_wf.attachment, text[]) is
    'Raises PA002 naming the column that the settings get wrong. mentioned: those that must be there, besides id_columns; null: all.';

create function pgaudit_wf.attach(
    target regclass,
    resource_type text default null,
    id_columns text[] default null,
    org_column text default null,
    label_column text default null,
    ignore text[] default null,
    redact text[] default null,
    on_failure text default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
    known boolean;
    before jsonb;
begin
    perform pgaudit_wf.check_attachable(attach.target);
    -- Where there are no event triggers, nobody told us of tables that were dropped.
    delete from pgaudit_wf.attachment as a where not exists (select from pg_class where oid = a.target);
    if attach.on_failure not in ('abort', 'warn') then
        raise exception 'on_failure is "%": it must be abort or warn', attach.on_failure using errcode = 'PA008';
    end if;
    -- With what an action adds to it, it fits the 128 characters of one.
    if length(attach.resource_type) > 100 then
        raise exception 'resource_type has % characters: at most 100 are recorded', length(attach.resource_type) using errcode = 'PA008';
    end if;
    -- One at a time for a table; and the table's own lock before ours, in the order in which DDL takes them.
    execute format('lock table only %s in share row exclusive mode', attach.target);

    select * into setting from pgaudit_wf.attachment as a where a.target = attach.target for update;
    known := found;
    before := to_jsonb(setting);
    setting.target := attach.target;
    setting.columns := pgaudit_wf.column_names(attach.target);
    setting.form := case when pgaudit_wf.can_follow_ddl() then 'compiled' else 'generic' end;
    setting.function_name := coalesce(setting.function_name, pgaudit_wf.capture_function_name(attach.target));
    setting.resource_type := coalesce(nullif(attach.resource_type, ''), setting.resource_type,
        (select relname from pg_class where oid = attach.target));
    setting.id_columns := coalesce(nullif(attach.id_columns, '{}'), setting.id_columns, (
        select array_agg(attname::text order by k.position)
        from pg_index, unnest(indkey) with ordinality as k (key_number, position)
        join pg_attribute on attrelid = attach.target and attnum = key_number
        where indrelid = attach.target and indisprimary));
    if setting.id_columns is null then
        raise exception '% has no primary key', attach.target
            using errcode = 'PA002', hint = 'Say which columns identify a row: id_columns => array[''…''].';
    end if;
    setting.org_column := nullif(coalesce(attach.org_column, setting.org_column, case when not known then (
        select name from unnest(array['org_id', 'organization_id']) with ordinality as usual (name, position)
        where name = any (setting.columns) order by position limit 1) end), '');
    setting.label_column := nullif(coalesce(attach.label_column, setting.label_column), '');
    setting.ignore := coalesce(attach.ignore, setting.ignore, array['updated_at']);
    setting.redact := coalesce(attach.redact, setting.redact, '{}');
    setting.on_failure := coalesce(attach.on_failure, setting.on_failure, 'abort');
    if not known and 'updated_at' <> all (setting.columns) then
        setting.ignore := array_remove(setting.ignore, 'updated_at');
    end if;

    -- What is named here must be there; what was named before may have been dropped meanwhile, and holds again if it comes back.
    perform pgaudit_wf.check_columns(setting, case when known then coalesce(attach.ignore, '{}') || coalesce(attach.redact, '{}') || attach.org_column || attach.label_column end);
    perform pgaudit_wf.check_action_rule(setting.target, r) from pgaudit_wf.action_rule as r where r.resource_type = setting.resource_type;

    setting.attached_at := coalesce(setting.attached_at, now());
    setting.attached_by := coalesce(setting.attached_by, session_user);
    if known then
        delete from pgaudit_wf.attachment as a where a.target = attach.target;
    end if;
    insert into pgaudit_wf.attachment select setting.*;
    if before is distinct from to_jsonb(setting) then
        insert into pgaudit_wf.attachment_history (target, resource_type, change, detail)
        values (setting.target, setting.resource_type, case when known then 'changed' else 'attached' end,
            to_jsonb(setting) - '{target,columns,usage_granted,attached_at,attached_by}'::text[]);
    end if;
    perform pgaudit_wf.write_functions(setting);
    perform pgaudit_wf.place_triggers(setting);
    perform pgaudit_wf.place_limit(setting);
    perform pgaudit_wf.ensure_log_partitions();
end
$$;
comment on function pgaudit_wf.attach(regclass, text, text[], text, text, text[], text[], text) is
    'Has every change of a table recorded in security_audit_log from now on. Called again it changes the named settings in place; one that is not named stays as it was, '''' or ''{}'' clears it. '
    'At first: resource_type is the table''s name; id_columns its primary key; org_column org_id or organization_id if there (else events take app.org_id); label_column none; '
    'ignore {updated_at} (columns left out of the log); redact none (columns shown as "[redacted]"); on_failure abort (or warn: let the change through and count the failure). '
    'Raises PA002 (column), PA003 (rule), PA004 (table), PA008 (argument); the table then stays as it was.';

create function pgaudit_wf.stands_on(relation oid, function_name text) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
        select from (
            select a.target, a.function_name from pgaudit_wf.attachment as a
            union all select a.target, pgaudit_wf.guard_function_name(a) from pgaudit_wf.attachment as a
            union all select t.target, t.function_name from pgaudit_wf.limit_target as t
            union all select e.target, e.function_name from pgaudit_wf.execution_attachment as e
        ) as written
        where written.function_name = stands_on.function_name and pg_partition_root(written.target) = pg_partition_root(stands_on.relation));
end
$$;
comment on function pgaudit_wf.stands_on(oid, text) is 'Whether a trigger function was written for a table or for others of its partition tree.';

create function pgaudit_wf.check_place(target regclass, function_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- The owner of a partitioned table may call its trigger functions, as he makes partitions. On a table of his own making, whose
    -- columns can be of types of his, they would run his casts with our rights, or tell what never happened.
    select case when (select relkind from pg_class where oid = check_place.target) = 'p' then format($check$
    if pg_partition_root(tg_relid) is distinct from %s and not pgaudit_wf.stands_on(tg_relid, %L) then
        raise exception 'this trigger function is not for table %%', tg_relid::regclass using errcode = 'insufficient_privilege';
    end if;$check$, pg_partition_root(check_place.target)::oid, check_place.function_name) else '' end
$$;
comment on function pgaudit_wf.check_place(regclass, text) is
    'PL/pgSQL with which the trigger function of a partitioned table refuses to work anywhere else; nothing for other tables.';

create function pgaudit_wf.let_owner_read(target regclass, columns text[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    reader constant name := pgaudit_wf.schema_owner();
    class pg_class := (select c from pg_class as c where c.oid = let_owner_read.target);
    name text;
begin
    if pg_has_role(reader, class.relowner, 'usage') then
        return;
    end if;
    foreach name in array let_owner_read.columns loop
        if not has_column_privilege(reader, let_owner_read.target, name, 'select') then
            execute format('grant select (%I) on %s to %I', name, let_owner_read.target, reader);
        end if;
    end loop;
    if not has_schema_privilege(reader, class.relnamespace, 'usage') then
        execute format('grant usage on schema %s to %I', class.relnamespace::regnamespace, reader);
    end if;
end
$$;
comment on function pgaudit_wf.let_owner_read(regclass, text[]) is
    'Lets the owner of our schema read columns of a table, with the rights of the caller; nothing where it may.';

create function pgaudit_wf.replace_function(function_name text, body text, settings text[], target regclass, description text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    owner constant oid := (select relowner from pg_class where oid = replace_function.target);
    function regprocedure := to_regprocedure(format('pgaudit_wf.%I()', replace_function.function_name));
    grantee regrole;
begin
    -- Two sessions at once that follow DDL on partitions of one table must not both replace its function: the second would fail.
    if function is null or not exists (
        select from pg_proc
        where oid = function and prosrc = replace_function.body and proowner = pgaudit_wf.schema_owner()::regrole
            and array(select lower(config) from unnest(proconfig) as config where config !~ '^search_path=' order by 1)
                = array(select replace(replace(lower(setting), ' = ', '='), '''', '') from unnest(replace_function.settings) as setting order by 1))
    then
        -- In turn, if two change something that the function reads (a type and the rules, say): the second would fail otherwise.
        perform from pgaudit_wf.attachment as a where a.target = replace_function.target for update;
        execute format(e'create or replace function pgaudit_wf.%I() returns trigger\nlanguage plpgsql security definer\nset search_path = pg_catalog, pg_temp%s\nas %L',
            replace_function.function_name, (select string_agg(e'\nset ' || setting, '' order by setting) from unnest(replace_function.settings) as setting), replace_function.body);
        function := format('pgaudit_wf.%I()', replace_function.function_name)::regprocedure;
        execute format('comment on function %s is %L', function, replace_function.description);
        execute format('revoke all on function %s from public', function);
    end if;
    for grantee in
        select acl.grantee from pg_proc as p, aclexplode(p.proacl) as acl where p.oid = function and acl.grantee not in (p.proowner, owner, 0)
    loop
        execute format('revoke all on function %s from %s', function, grantee);
    end loop;
    -- Whoever makes a partition of a table puts its triggers on it, and so must be allowed to call their functions.
    if (select relkind from pg_class where oid = replace_function.target) = 'p' and not has_function_privilege(owner, function, 'execute') then
        execute format('grant execute on function %s to %s', function, owner::regrole);
    end if;
end
$$;
comment on function pgaudit_wf.replace_function(text, text, text[], regclass, text) is
    'Writes a trigger function of an attached table, unless it is there as it should be, and lets the table''s owner have it called.';

create function pgaudit_wf.revoke_usage(setting pgaudit_wf.attachment) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if to_regrole(quote_ident((setting).usage_granted)) is not null
        and not exists (select from pgaudit_wf.attachment as a where a.usage_granted = (setting).usage_granted and a.target <> (setting).target)
    then
        execute format('revoke usage on schema pgaudit_wf from %I', (setting).usage_granted);
    end if;
end
$$;
comment on function pgaudit_wf.revoke_usage(pgaudit_wf.attachment) is
    'Takes USAGE of our schema from the owner of a partitioned table that is no longer attached, if he was given it for that table alone.';

create function pgaudit_wf.write_functions(setting pgaudit_wf.attachment) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgaudit_wf.replace_function((setting).function_name, pgaudit_wf.capture_body(setting), pgaudit_wf.capture_settings(setting),
        (setting).target, format('Records the changes of %s.', (setting).target));
    perform pgaudit_wf.replace_function(pgaudit_wf.guard_function_name(setting), pgaudit_wf.guard_body(setting), '{}',
        (setting).target, format('Keeps an invalid workflow of %s from being enabled or listed.', (setting).target))
        where pgaudit_wf.guard_body(setting) is not null;
    perform pgaudit_wf.replace_function(t.function_name, pgaudit_wf.limit_body(t), '{}',
        t.target, format('Counts the rows of %s for pgaudit_wf.org_limit.', t.target))
        from pgaudit_wf.limit_target as t where t.target = (setting).target;
    -- follow_as_author() names them.
    if (select relkind = 'p' and not has_schema_privilege(relowner, 'pgaudit_wf', 'usage') from pg_class where oid = (setting).target) then
        perform pgaudit_wf.revoke_usage(setting);
        update pgaudit_wf.attachment as a set usage_granted = (select pg_get_userbyid(relowner) from pg_class where oid = (setting).target)
        where a.target = (setting).target;
        execute format('grant usage on schema pgaudit_wf to %s', (select relowner::regrole from pg_class where oid = (setting).target));
    end if;
end
$$;
comment on function pgaudit_wf.write_functions(pgaudit_wf.attachment) is
    'Writes the trigger functions of an attached table, as its owner of our schema: what follows DDL does no more than this.';

create function pgaudit_wf.place_triggers(setting pgaudit_wf.attachment) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    op text;
    leaf regclass;
begin
    -- Triggers fire in the order of their names, and one that changes the row again must come after the first change was recorded:
    -- "!" comes before whatever else a name begins with, PostgreSQL's own for foreign keys (RI_…) included.
    -- No WHEN clause: PostgreSQL parses and plans it anew for each statement, which costs more than to enter the function and
    -- leave it again (12 against 4 µs), and its columns could not be dropped or retyped.
    foreach op in array array['insert', 'update', 'delete'] loop
        execute format('create or replace trigger "!pgaudit_wf_%s" after %s on %s for each row execute function pgaudit_wf.%I()',
            op, op, (setting).target, (setting).function_name);
        -- "Always": also in a session that calls itself a replica.
        execute format('alter table %s enable always trigger "!pgaudit_wf_%s"', (setting).target, op);
    end loop;
    -- A foreign partition can have no such trigger.
    for leaf in select l from pgaudit_wf.leaf_tables((setting).target) as l join pg_class as c on c.oid = l where c.relkind <> 'f' loop
        execute format('create or replace trigger pgaudit_wf_truncate after truncate on %s for each statement execute function pgaudit_wf.%I()',
            leaf, (setting).function_name);
        execute format('alter table %s enable always trigger pgaudit_wf_truncate', leaf);
    end loop;
    -- A partition that was detached is no longer ours.
    for leaf in
        select tgrelid from pg_trigger
        where tgfoid = format('pgaudit_wf.%I()', (setting).function_name)::regprocedure and tgname = 'pgaudit_wf_truncate'
            and tgrelid not in (select pgaudit_wf.leaf_tables((setting).target))
    loop
        execute format('drop trigger pgaudit_wf_truncate on %s', leaf);
    end loop;
    if pgaudit_wf.guard_body(setting) is not null then
        -- Not "always": what a subscriber applies went live where it was written, and refusing it here would stop the subscription for good.
        execute format('create or replace trigger pgaudit_wf_guard before insert or update on %s for each row execute function pgaudit_wf.%I()',
            (setting).target, pgaudit_wf.guard_function_name(setting));
    end if;
end
$$;
comment on function pgaudit_wf.place_triggers(pgaudit_wf.attachment) is
    'Puts the triggers on an attached table, with the rights of the caller, who must own it.';

create function pgaudit_wf.leaf_tables(target regclass) returns setof regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- A statement trigger is not inherited by partitions, so TRUNCATE is watched where the rows are.
    select relid from pg_partition_tree(leaf_tables.target) where isleaf
    union
    select leaf_tables.target where not exists (select from pg_partition_tree(leaf_tables.target))
$$;
comment on function pgaudit_wf.leaf_tables(regclass) is 'The tables that hold a table''s rows: itself, or its partitions.';

create function pgaudit_wf.drop_functions(names text[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    function regprocedure;
begin
    for function in
        select p.oid from pg_proc as p where p.pronamespace = 'pgaudit_wf'::regnamespace and p.pronargs = 0 and p.proname = any (names)
    loop
        -- Cascade: partitions that were detached while nobody watched have kept its triggers.
        execute format('drop function %s cascade', function);
    end loop;
end
$$;
comment on function pgaudit_wf.drop_functions(text[]) is 'Drops trigger functions that were written for a table, as far as they are there, and what is left of their triggers.';

create function pgaudit_wf.detach(target regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
    installed record;
begin
    -- Without event triggers, nobody told us that a table was dropped.
    if exists (select from pg_class where oid = detach.target) then
        execute format('lock table only %s in access exclusive mode', detach.target);
    end if;
    delete from pgaudit_wf.attachment as a where a.target = detach.target returning a.* into setting;
    if not found then
        raise exception '% is not attached', detach.target
            using errcode = 'PA005', hint = 'The view pgaudit_wf.attached lists what is.';
    end if;
    perform pgaudit_wf.uninstall_limit(detach.target);
    -- Also where the function was put long ago: on a partition that has been detached since.
    for installed in
        select tgname as name, tgrelid::regclass as relation from pg_trigger
        where tgfoid in (to_regprocedure(format('pgaudit_wf.%I()', setting.function_name)), to_regprocedure(format('pgaudit_wf.%I()', pgaudit_wf.guard_function_name(setting))))
            and tgparentid = 0
    loop
        execute format('drop trigger %I on %s', installed.name, installed.relation);
    end loop;
    perform pgaudit_wf.drop_functions(array[setting.function_name, pgaudit_wf.guard_function_name(setting)]);
    perform pgaudit_wf.revoke_usage(setting);
    delete from pgaudit_wf.workflow_attachment as w where w.target = detach.target;
    insert into pgaudit_wf.attachment_history (target, resource_type, change) values (setting.target, setting.resource_type, 'detached');
end
$$;
comment on function pgaudit_wf.detach(regclass) is
    'Stops recording a table and removes its triggers; what was recorded stays. Raises PA005 if it is not attached.';

create function pgaudit_wf.recompile_for_rules() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
begin
    for setting in
        select a.* from pgaudit_wf.attachment as a
        where a.resource_type in (select touched.resource_type from touched) order by a.target::oid
    loop
        perform pgaudit_wf.check_action_rule(setting.target, r) from pgaudit_wf.action_rule as r where r.resource_type = setting.resource_type;
        perform pgaudit_wf.write_functions(setting);
    end loop;
    return null;
end
$$;
comment on function pgaudit_wf.recompile_for_rules() is 'Trigger of action_rule: compiles the rule into the attached tables of its type, or refuses it.';

create trigger recompile_insert after insert on pgaudit_wf.action_rule
    referencing new table as touched for each statement execute function pgaudit_wf.recompile_for_rules();
create trigger recompile_update_new after update on pgaudit_wf.action_rule
    referencing new table as touched for each statement execute function pgaudit_wf.recompile_for_rules();
create trigger recompile_update_old after update on pgaudit_wf.action_rule
    referencing old table as touched for each statement execute function pgaudit_wf.recompile_for_rules();
create trigger recompile_delete after delete on pgaudit_wf.action_rule
    referencing old table as touched for each statement execute function pgaudit_wf.recompile_for_rules();

create view pgaudit_wf.attached as
select
    a.target,
    a.resource_type,
    a.id_columns,
    a.org_column,
    a.label_column,
    a.ignore,
    a.redact,
    a.on_failure,
    a.form,
    a.function_name,
    (select count(*) from pgaudit_wf.action_rule as r where r.resource_type = a.resource_type) as rules,
    (select count(*) from pgaudit_wf.capture_failure as f where to_regclass(f.target) = a.target) as failures,
    a.attached_at,
    a.attached_by
from pgaudit_wf.attachment as a;
comment on view pgaudit_wf.attached is 'What is audited, and how. doctor() says whether it still is.';
comment on column pgaudit_wf.attached.target is 'The audited table.';
comment on column pgaudit_wf.attached.resource_type is 'resource_type of its events.';
comment on column pgaudit_wf.attached.id_columns is 'Columns that make up resource_id.';
comment on column pgaudit_wf.attached.org_column is 'Column that gives org_id; null: app.org_id is taken.';
comment on column pgaudit_wf.attached.label_column is 'Column kept as metadata.label.';
comment on column pgaudit_wf.attached.ignore is 'Columns left out of the log.';
comment on column pgaudit_wf.attached.redact is 'Columns shown as "[redacted]".';
comment on column pgaudit_wf.attached.on_failure is 'abort or warn.';
comment on column pgaudit_wf.attached.form is 'compiled or generic.';
comment on column pgaudit_wf.attached.function_name is 'Trigger function: \sf pgaudit_wf.<function_name>.';
comment on column pgaudit_wf.attached.rules is 'Number of action rules for its resource type.';
comment on column pgaudit_wf.attached.failures is 'Changes that went through unrecorded (on_failure warn).';
comment on column pgaudit_wf.attached.attached_at is 'When it was attached first.';
comment on column pgaudit_wf.attached.attached_by is 'Login role that attached it first.';

-- sql/core/090_follow_ddl.sql

-- A table changes under its compiled trigger: event triggers write its functions anew in the transaction of the DDL.
--
-- Whoever runs the DDL need not have any right here, so after_ddl() and after_drop() run as the owner of our schema; that role owns
-- no table of anybody's and can do nothing to one. What has to be done to a table (a new partition's own triggers) is done by
-- follow_as_author(), as whoever runs the DDL. Nothing here evaluates a default, a cast, a domain or a condition. The event
-- triggers themselves are made in 990, by the role that installs.

create function pgaudit_wf.renamed(name text, renames jsonb) returns text
language sql immutable parallel safe
as $$ select coalesce(renames ->> name, name) $$;
comment on function pgaudit_wf.renamed(text, jsonb) is 'A column''s name after the renames ({old: new}).';

create function pgaudit_wf.rename_in_rules(resource_type text, old_name text, new_name text) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    -- Case counts only between quotes.
    update pgaudit_wf.action_rule
    set condition = regexp_replace(regexp_replace(condition, plain, replacement, 'gi'), quoted, replacement, 'g')
    from (
        select
            case when old_name ~ '^[a-z_][a-z0-9_$]*$'
                then format('\m(old|new)\s*\.\s*%s(?![[:alnum:]_$])', replace(old_name, '$', '\$')) else '(?!)' end as plain,
            format('\m([oO][lL][dD]|[nN][eE][wW])\s*\.\s*%s',
                regexp_replace(format('"%s"', replace(old_name, '"', '""')), '([][\\.^$*+?(){}|-])', '\\\1', 'g')) as quoted,
            '\1.' || replace(quote_ident(new_name), '\', '\\') as replacement
    ) as rename
    where action_rule.resource_type = rename_in_rules.resource_type and (condition ~* plain or condition ~ quoted)
$$;
comment on function pgaudit_wf.rename_in_rules(text, text, text) is 'Follows a renamed column in the conditions of the rules of a resource type.';

create function pgaudit_wf.column_default(target regclass, name text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- As the triggers write it.
set timezone = 'UTC'
as $$
declare
    missing text;
    type oid;
    value jsonb;
begin
    -- What PostgreSQL shows in the rows that were there before the column was added, as it keeps it.
    select (attmissingval::text::text[])[1], pgaudit_wf.base_type(atttypid) into missing, type
    from pg_attribute where attrelid = column_default.target and attname = column_default.name;
    if pgaudit_wf.is_built_in(type) then
        begin
            -- -1: without it, char and bit would be cut to their first place.
            execute format('select to_jsonb($1::%s)', format_type(type, -1)) into value using missing;
            return value;
        exception
            -- What jsonb cannot hold; and a box, in whose arrays a comma is none.
            when data_exception or program_limit_exceeded then
                null;
        end;
    end if;
    return to_jsonb(missing);
end
$$;
comment on function pgaudit_wf.column_default(regclass, text) is
    'The constant default that an added column has in the rows that were there before; as text unless its type is one of PostgreSQL''s own.';

create function pgaudit_wf.recompile(target regclass, renamed_to text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
    columns_now constant text[] := pgaudit_wf.column_names(recompile.target);
    renames jsonb := '{}';
    altered jsonb;
begin
    select * into strict setting from pgaudit_wf.attachment as a where a.target = recompile.target;
    if recompile.renamed_to = any (columns_now) and recompile.renamed_to <> all (setting.columns) then
        select coalesce(jsonb_object_agg(name, recompile.renamed_to) filter (where count = 1), '{}') into renames
        from (select name, count(*) over () as count from unnest(setting.columns) as name where name <> all (columns_now)) as gone;
    end if;
    altered := (select coalesce(jsonb_object_agg(key, value), '{}') from jsonb_each(jsonb_build_object(
        'renamed', nullif(renames, '{}'),
        'added', (
            select jsonb_object_agg(name, case
                when name = any (setting.redact) and atthasmissing then to_jsonb('[redacted]'::text)
                when name = any (setting.redact) then 'null'
                else coalesce(pgaudit_wf.column_default(recompile.target, name), 'null') end)
            from unnest(columns_now) as name
            join pg_attribute on attrelid = recompile.target and attname = name
            where name <> all (setting.columns || setting.ignore) and attgenerated <> 'v' and (recompile.renamed_to is null or renames = '{}')),
        'dropped', (
            select jsonb_agg(name) from unnest(setting.columns) as name
            where name <> all (columns_now) and not renames ? name))) where value <> 'null');

    if altered <> '{}' then
        setting.columns := columns_now;
        setting.id_columns := array(select pgaudit_wf.renamed(name, renames) from unnest(setting.id_columns) with ordinality as k (name, position) order by position);
        -- A setting names a column that was dropped, too: what replaces it under its name is what it was. And a secret's old name stays
        -- one, for the column that is made under it next.
        setting.org_column := pgaudit_wf.renamed(setting.org_column, renames);
        setting.label_column := pgaudit_wf.renamed(setting.label_column, renames);
        setting.ignore := array(select pgaudit_wf.renamed(name, renames) from unnest(setting.ignore) as name);
        setting.redact := setting.redact || array(select renames ->> name from unnest(setting.redact) as name where renames ? name);
        if not columns_now @> setting.id_columns then
            raise exception '% is audited, and a column that identifies its rows (%) cannot be dropped', recompile.target, array_to_string(setting.id_columns, ', ')
                using errcode = 'PA002', hint = format('Attach it by other columns first: select pgaudit_wf.attach(%L, id_columns => …).', recompile.target);
        end if;
        update pgaudit_wf.attachment as a
        set (id_columns, org_column, label_column, ignore, redact, columns)
            = (setting.id_columns, setting.org_column, setting.label_column, setting.ignore, setting.redact, setting.columns)
        where a.target = recompile.target;

        update pgaudit_wf.workflow_attachment as w
        set nodes_column = pgaudit_wf.renamed(nodes_column, renames),
            edges_column = pgaudit_wf.renamed(edges_column, renames),
            name_column = pgaudit_wf.renamed(name_column, renames),
            description_column = pgaudit_wf.renamed(description_column, renames),
            visibility_column = pgaudit_wf.renamed(visibility_column, renames),
            enabled_column = pgaudit_wf.renamed(enabled_column, renames),
            listed_column = pgaudit_wf.renamed(listed_column, renames),
            listing_columns = array(select pgaudit_wf.renamed(name, renames) from unnest(listing_columns) as name)
        where w.target = recompile.target;
        perform pgaudit_wf.check_workflow_columns(w) from pgaudit_wf.workflow_attachment as w where w.target = recompile.target;
        begin
            perform pgaudit_wf.rename_in_rules(setting.resource_type, key, value) from jsonb_each_text(renames);
        exception
            when sqlstate 'PA003' then
                raise warning '%', sqlerrm using hint = 'Changes are recorded without this meaning until pgaudit_wf.action_rule is mended; pgaudit_wf.doctor() names it.';
        end;
        insert into pgaudit_wf.attachment_history (target, resource_type, change, detail)
        values (setting.target, setting.resource_type, 'altered', altered);
    end if;
    perform pgaudit_wf.follow_limit(setting, renames);
    perform pgaudit_wf.write_functions(setting);
end
$$;
comment on function pgaudit_wf.recompile(regclass, text) is
    'Writes an attached table''s trigger functions anew after DDL; its settings and rules follow a column that was renamed.';

create function pgaudit_wf.descendants(target regclass) returns setof regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with recursive descendant as (
        select inhrelid from pg_inherits where inhparent = descendants.target
        union
        select i.inhrelid from pg_inherits as i join descendant as d on i.inhparent = d.inhrelid
    )
    select inhrelid::regclass from descendant
$$;
comment on function pgaudit_wf.descendants(regclass) is 'Partitions and inheriting tables, which DDL on their parent alters too.';

create function pgaudit_wf.after_ddl() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    command record;
    concerned regclass;
begin
    for command in
        select done.classid, done.objid, done.objsubid from pg_event_trigger_ddl_commands() as done
        where done.classid in ('pg_class'::regclass, 'pg_type'::regclass, 'pg_cast'::regclass)
    loop
        -- Of a cast, its type counts, over which a rule may be no longer safe to run.
        if command.classid = 'pg_cast'::regclass then
            select 'pg_type'::regclass, castsource into command.classid, command.objid from pg_cast where oid = command.objid;
        end if;
        for concerned in
            select a.target from pgaudit_wf.attachment as a
            where a.form = 'compiled'
                and (
                    -- A typed table takes its columns from the type.
                    (select reloftype from pg_class where oid = a.target)
                        = case command.classid when 'pg_type'::regclass then command.objid else (select nullif(reltype, 0) from pg_class where oid = command.objid) end or
                    command.classid = 'pg_class'::regclass and (a.target = command.objid
                        or a.target in (select pgaudit_wf.descendants(command.objid))
                        or a.target in (select relid from pg_partition_ancestors(command.objid)))
                    or exists (
                        select from pg_attribute
                        where attrelid = a.target and attnum > 0 and not attisdropped and atttypid >= 16384
                            and pgaudit_wf.contains_type(atttypid, case command.classid when 'pg_type'::regclass then command.objid
                                else (select reltype from pg_class where oid = command.objid) end)))
            order by a.target::oid
        loop
            -- Only RENAME COLUMN reports a column; it says the new name.
            perform pgaudit_wf.recompile(concerned, (
                select attname from pg_attribute
                where command.classid = 'pg_class'::regclass and attrelid = command.objid and attnum = nullif(command.objsubid, 0)));
        end loop;
        perform pgaudit_wf.write_stamp(e) from pgaudit_wf.execution_attachment as e
        where command.classid = 'pg_class'::regclass
            and (e.target = command.objid or e.target in (select pgaudit_wf.descendants(command.objid)) or e.target in (select relid from pg_partition_ancestors(command.objid)));
    end loop;
end
$$;
comment on function pgaudit_wf.after_ddl() is
    'Event trigger after ALTER TABLE, ALTER TYPE, CREATE TABLE, CREATE SCHEMA and CREATE CAST: writes the functions of the attached tables concerned anew.';

create function pgaudit_wf.follow_as_author() returns event_trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    wanted record;
begin
    -- Statement triggers are not handed down to partitions, as those for each row are. Only pg_catalog is asked before it is known that
    -- the partition is of an attached table: its owner may call our trigger functions, others need no right of ours.
    for wanted in
        select distinct part.relid::regclass as relation, p.proname as function_name, own.name, own.event, own.transition
        from pg_event_trigger_ddl_commands() as command
        join pg_partition_tree(command.objid) as part on true
        join pg_partition_ancestors(part.relid) as parent on parent.relid <> part.relid
        join pg_trigger as t on t.tgrelid = parent.relid and not t.tgisinternal
        join (values
            ('!pgaudit_wf_insert', 'pgaudit_wf_truncate', 'truncate', ''),
            ('pgaudit_wf_limit_insert', 'pgaudit_wf_limit_insert', 'insert', 'referencing new table as new_rows'),
            ('pgaudit_wf_limit_insert', 'pgaudit_wf_limit_update', 'update', 'referencing old table as old_rows new table as new_rows'),
            ('pgaudit_wf_limit_insert', 'pgaudit_wf_limit_delete', 'delete', 'referencing old table as old_rows'),
            ('pgaudit_wf_limit_insert', 'pgaudit_wf_limit_truncate', 'truncate', '')
        ) as own (parent_trigger, name, event, transition) on own.parent_trigger = t.tgname
        join pg_proc as p on p.oid = t.tgfoid
        join pg_namespace as n on n.oid = p.pronamespace and n.nspname = 'pgaudit_wf'
        where command.classid = 'pg_class'::regclass and command.object_type = 'table'
            and (own.event <> 'truncate' or part.isleaf)
            -- A foreign table can have none of these.
            and (select relkind from pg_class where oid = part.relid) <> 'f'
            and not exists (select from pg_trigger as present where present.tgrelid = part.relid and present.tgname = own.name and present.tgfoid = t.tgfoid)
    loop
        begin
            execute format('create or replace trigger %I after %s on %s %s for each statement execute function pgaudit_wf.%I()',
                wanted.name, wanted.event, wanted.relation, wanted.transition, wanted.function_name);
            if wanted.name = 'pgaudit_wf_truncate' then
                execute format('alter table %s enable always trigger pgaudit_wf_truncate', wanted.relation);
            end if;
        exception
            when insufficient_privilege then
                raise warning 'partition % of an audited table lacks the trigger % (%)', wanted.relation, wanted.name, sqlerrm
                    using hint = 'Have the table attached again: pgaudit_wf.doctor() says how.';
        end;
    end loop;
    -- A partition that was detached keeps its statement triggers, and is no longer ours.
    for wanted in
        select distinct stray.tgname as name, stray.tgrelid::regclass as relation
        from pg_event_trigger_ddl_commands() as command
        join pg_class as c on c.oid = command.objid and c.relkind = 'p'
        join pg_trigger as own on own.tgrelid = c.oid and own.tgname in ('!pgaudit_wf_insert', 'pgaudit_wf_limit_insert')
        join pg_trigger as stray on stray.tgfoid = own.tgfoid and stray.tgparentid = 0
        where command.classid = 'pg_class'::regclass and command.command_tag = 'ALTER TABLE' and own.tgparentid = 0
            and not exists (select from pg_partition_tree(pg_partition_root(c.oid)) as tree where tree.relid = stray.tgrelid)
    loop
        begin
            execute format('drop trigger %I on %s', wanted.name, wanted.relation);
        exception
            when insufficient_privilege then
                raise warning 'the trigger % stays on %, which is no longer a partition of an audited table (%)', wanted.name, wanted.relation, sqlerrm;
        end;
    end loop;
    if exists (
        select from pg_event_trigger_ddl_commands() as command where command.object_type = 'view' and command.schema_name = 'pgaudit_wf')
    then
        perform pgaudit_wf.grant_directory();
    end if;
end
$$;
comment on function pgaudit_wf.follow_as_author() is
    'Event trigger after CREATE TABLE, ALTER TABLE and CREATE VIEW, as whoever runs it: gives new partitions of an attached table their own statement triggers, and lets a view of ours read the columns that it names.';

create function pgaudit_wf.after_drop() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
    stamp text;
    broken regclass;
begin
    for setting in
        delete from pgaudit_wf.attachment as a
        where a.target in (select dropped.objid from pg_event_trigger_dropped_objects() as dropped where dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0)
        returning a.*
    loop
        insert into pgaudit_wf.attachment_history (target, resource_type, change)
        select dropped.object_identity, setting.resource_type, 'dropped'
        from pg_event_trigger_dropped_objects() as dropped
        where dropped.objid = setting.target and dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0;
        delete from pgaudit_wf.workflow_attachment as w where w.target = setting.target;
        perform pgaudit_wf.uninstall_limit(setting.target);
        perform pgaudit_wf.drop_functions(array[setting.function_name, pgaudit_wf.guard_function_name(setting)]);
        perform pgaudit_wf.revoke_usage(setting);
    end loop;
    for stamp in
        delete from pgaudit_wf.execution_attachment as e
        where e.target in (select dropped.objid from pg_event_trigger_dropped_objects() as dropped where dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0)
        returning e.function_name
    loop
        perform pgaudit_wf.drop_functions(array[stamp]);
    end loop;
    -- A partition that was dropped took its rows with it.
    for setting in
        select a.* from pgaudit_wf.attachment as a
        join pgaudit_wf.limit_target as t on t.target = a.target
        where exists (
            select from pg_event_trigger_dropped_objects() as dropped
            where dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0 and t.basis -> 'relations' @> to_jsonb(dropped.objid::bigint))
    loop
        perform pgaudit_wf.follow_limit(setting, '{}');
    end loop;
    -- A CASCADE (of a type, say) took columns of attached tables; ALTER TABLE is seen by after_ddl().
    if tg_tag <> 'ALTER TABLE' then
        for broken in
            select distinct a.target from pgaudit_wf.attachment as a
            join pg_event_trigger_dropped_objects() as dropped
                on dropped.objid = a.target and dropped.classid = 'pg_class'::regclass and dropped.objsubid <> 0
            where a.form = 'compiled'
        loop
            perform pgaudit_wf.recompile(broken, null);
        end loop;
    end if;
end
$$;
comment on function pgaudit_wf.after_drop() is 'Event trigger: forgets attached tables that were dropped, writes the functions of those that lost a column by CASCADE.';

-- sql/core/100_record_event.sql

-- Events that no table shows: the application reports them itself.

create function pgaudit_wf.json_diff(before jsonb, after jsonb, path text default '') returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    if before is null and after is null then
        return null;
    elsif before is null then
        return jsonb_build_array(jsonb_build_object('op', 'add', 'path', path, 'value', after));
    elsif after is null then
        return jsonb_build_array(jsonb_build_object('op', 'remove', 'path', path, 'old', before));
    elsif before = after then
        return '[]';
    -- Each level is a call within a call, and the stack has an end.
    elsif jsonb_typeof(before) <> 'object' or jsonb_typeof(after) <> 'object'
        or (length(path) >= 32 and length(path) - length(replace(path, '/', '')) >= 32) then
        return jsonb_build_array(jsonb_build_object('op', 'replace', 'path', path, 'old', before, 'value', after));
    end if;
    return (
        select coalesce(jsonb_agg(op order by key, position), '[]')
        from (select jsonb_object_keys(before) as key union select jsonb_object_keys(after)) as keys,
        lateral jsonb_array_elements(pgaudit_wf.json_diff(before -> key, after -> key, path || pgaudit_wf.pointer(key)))
            with ordinality as ops (op, position)
    );
end
$$;
comment on function pgaudit_wf.json_diff(jsonb, jsonb, text) is
    'JSON Patch (RFC 6902) from before to after, with "old" in each remove and replace; objects member by member down to 32 levels, arrays as a whole; null stands for absent.';

create function pgaudit_wf.readable_json(value jsonb, longest integer default 1073741823) returns jsonb
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
begin
    if octet_length(readable_json.value::text) <= readable_json.longest then
        return readable_json.value;
    end if;
    return jsonb_build_object(
        'sha256', encode(sha256(convert_to(readable_json.value::text, 'UTF8')), 'hex'), 'bytes', octet_length(readable_json.value::text));
exception
    -- Nothing prints such a one, so there is no text to digest; the hash still tells when it is another.
    when program_limit_exceeded then
        return jsonb_build_object('hash', jsonb_hash_extended(readable_json.value, 0)::text, 'bytes', 'more than 1 GB');
end
$$;
comment on function pgaudit_wf.readable_json(jsonb, integer) is
    'A value whose text has at most so many bytes (what PostgreSQL can print: 1 GB) as it is; a larger one as {"sha256": …, "bytes": …} of its text, or {"hash": …, "bytes": …} where it has none. '
    '9,000 times 1e131071 are 3 KB where they are stored, and no reader could get past them.';

create function pgaudit_wf.bounded_json(value jsonb, longest integer default 1048576) returns jsonb
language plpgsql stable
as $$
begin
    -- Its text is what counts: 1e100000 takes 12 bytes, and 100,001 where it is shown. So much can be printed whatever it is, and a
    -- subtransaction is spared.
    if pg_column_size(value) <= 65536 then
        if octet_length(value::text) <= longest then
            return value;
        end if;
    end if;
    return pgaudit_wf.readable_json(value, longest);
end
$$;
comment on function pgaudit_wf.bounded_json(jsonb, integer) is
    'A value whose text has at most so many bytes (1 MiB) as it is; a larger one as {"sha256": …, "bytes": …} of its text, so that whoever reads the log can hold it.';

create function pgaudit_wf.record_event(
    action text,
    resource_type text default null,
    resource_id text default null,
    before jsonb default null,
    after jsonb default null,
    metadata jsonb default null,
    outcome text default 'succeeded'
) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    event_id bigint;
    changes jsonb;
begin
    if coalesce(record_event.action, '') = '' then
        raise exception 'record_event needs an action, such as subscription.change_requested' using errcode = 'PA008';
    end if;
    if length(record_event.action) > 128 or length(record_event.resource_type) > 128 then
        raise exception 'action and resource_type may have 128 characters at most' using errcode = 'PA008';
    end if;
    if record_event.outcome is null or record_event.outcome not in ('succeeded', 'failed', 'denied') then
        raise exception 'outcome is "%": it must be succeeded, failed or denied', record_event.outcome using errcode = 'PA008';
    end if;
    if jsonb_typeof(record_event.metadata) <> 'object' then
        raise exception 'metadata must be a JSON object, not %', jsonb_typeof(record_event.metadata) using errcode = 'PA008';
    end if;
    if record_event.before is not null or record_event.after is not null then
        changes := pgaudit_wf.json_diff(pgaudit_wf.bounded_json(record_event.before), pgaudit_wf.bounded_json(record_event.after));
        -- Paths repeat the keys above them.
        if pg_column_size(changes) > 4194304 then
            changes := jsonb_build_array(jsonb_build_object(
                'op', 'replace', 'path', '',
                'old', pgaudit_wf.bounded_json(record_event.before), 'value', pgaudit_wf.bounded_json(record_event.after)));
        end if;
    end if;
    insert into pgaudit_wf.security_audit_log (action, resource_type, resource_id, diff, metadata, outcome)
    values (
        record_event.action, record_event.resource_type, pgaudit_wf.bounded_key(record_event.resource_id), changes,
        case when pgaudit_wf.context_reason() is not null then jsonb_build_object('reason', pgaudit_wf.context_reason()) else '{}' end
            || coalesce(pgaudit_wf.bounded_json(record_event.metadata), '{}'),
        record_event.outcome)
    returning id into event_id;
    return event_id;
end
$$;
comment on function pgaudit_wf.record_event(text, text, text, jsonb, jsonb, jsonb, text) is
    'Records an event that no table shows (a plan change requested, an export made) in the current transaction, with the current context, and returns its id. '
    'before and after become diff; metadata is a JSON object; each that has more than 1 MiB is recorded by its SHA-256 and length. '
    'Its captured is false: the application says so. Raises PA008 on a wrong argument, such as an action or resource type of more than 128 characters.';

-- sql/core/110_read_log.sql

-- The reader's cursor: following the log without skipping or repeating an event.
--
-- Ids are given before commit, so they say nothing about what a reader can see. The rule, kept here and nowhere else: take events
-- whose transaction is below the oldest one still running, in the order (tx_id, id), and keep the last (tx_id, id) as the cursor.
--
-- Transaction ids start over in a cluster restored from a dump, so the log has generations: the events that came with the dump,
-- then those written since. A materialized view is what a restore runs by itself: it notes, in the new cluster and before the
-- first write, which cluster this is and the last id that came along.

create materialized view pgaudit_wf.log_origin as
select
    (select system_identifier from pg_catalog.pg_control_system()) as system_identifier,
    (select case when is_called then last_value else 0 end from pgaudit_wf.security_audit_log_id_seq) as inherited_id;
comment on materialized view pgaudit_wf.log_origin is
    'The cluster in which the log lives, and the last event id that was restored into it. Refreshed by pg_restore; never refresh it by hand.';
comment on column pgaudit_wf.log_origin.system_identifier is 'pg_control_system().system_identifier of the cluster.';
comment on column pgaudit_wf.log_origin.inherited_id is 'Last id given before the log was restored here; 0 where it was born.';

create table pgaudit_wf.log_generation (
    inherited_id bigint primary key,
    system_identifier bigint not null,
    noted_at timestamptz not null default now()
);
comment on table pgaudit_wf.log_generation is 'The clusters in which the log has lived, oldest first: transaction ids compare within one of them only.';
comment on column pgaudit_wf.log_generation.inherited_id is 'Last event id from before this cluster.';
comment on column pgaudit_wf.log_generation.system_identifier is 'The cluster.';
comment on column pgaudit_wf.log_generation.noted_at is 'When a reader first saw it.';
insert into pgaudit_wf.log_generation (inherited_id, system_identifier)
select inherited_id, system_identifier from pgaudit_wf.log_origin;

create function pgaudit_wf.log_generations() returns table (first_id bigint, last_id bigint, system_identifier bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    with known as (
        select g.inherited_id, g.system_identifier from pgaudit_wf.log_generation as g
        union all
        -- Restored since a reader last came by. The same cluster again is a copy in it, whose transaction ids go on.
        select o.inherited_id, o.system_identifier from pgaudit_wf.log_origin as o
        where o.system_identifier <> (select g.system_identifier from pgaudit_wf.log_generation as g order by g.inherited_id desc limit 1)
    )
    select inherited_id + 1, lead(inherited_id) over (order by inherited_id), known.system_identifier
    from known
    order by inherited_id
$$;
comment on function pgaudit_wf.log_generations() is
    'The ranges of event ids written in one cluster each, oldest first; last_id is null for the current one.';

create function pgaudit_wf.note_generation() returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
    insert into pgaudit_wf.log_generation (inherited_id, system_identifier)
    select g.first_id - 1, g.system_identifier from pgaudit_wf.log_generations() as g
    on conflict (inherited_id) do nothing
$$;
comment on function pgaudit_wf.note_generation() is
    'Remembers the current cluster as a generation of the log. A reader that keeps its cursor calls it whenever it saves it; ensure_log_partitions() does too.';

select pgaudit_wf.ensure_log_partitions();

create function pgaudit_wf.read_log(after text default null, max_events integer default 1000)
returns table (cursor text, event pgaudit_wf.security_audit_log)
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- The primary keys of the partitions give the order. A planner that guesses wrong, as it does on a fresh partition, would sort all
-- that is left of the log for each batch.
set enable_sort = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    generation record;
    part constant text[] := regexp_match(read_log.after, '^(\d+)/(\d+)/(\d{1,18})/(\d{1,18})$');
    after_tx bigint := coalesce(part[3]::bigint, -1);
    after_id bigint := coalesce(part[4]::bigint, -1);
    remaining integer := read_log.max_events;
    found_events integer;
begin
    if coalesce(read_log.max_events, 0) < 1 then
        raise exception 'max_events must be at least 1' using errcode = 'PA008';
    end if;
    if read_log.after is not null and not exists (
        select from pgaudit_wf.log_generations() as g where g.system_identifier::text = part[1] and g.first_id::text = part[2]) then
        raise exception 'the cursor "%" is not of this log', read_log.after
            using errcode = 'PA007', hint = 'Pass a cursor that read_log() returned, or null to start at the beginning.';
    end if;
    for generation in
        select g.* from pgaudit_wf.log_generations() as g
        where part is null or g.first_id >= part[2]::bigint order by g.first_id
    loop
        -- Only the current cluster can have transactions under way.
        return query
            select format('%s/%s/%s/%s', generation.system_identifier, generation.first_id, l.tx_id, l.id), l
            from pgaudit_wf.security_audit_log as l
            where (l.tx_id, l.id) > (after_tx, after_id)
                and l.id >= generation.first_id and l.id <= coalesce(generation.last_id, 9223372036854775807)
                and (generation.last_id is not null or l.tx_id < pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
            order by l.tx_id, l.id
            limit remaining;
        get diagnostics found_events = row_count;
        remaining := remaining - found_events;
        exit when remaining = 0;
        after_tx := -1;
        after_id := -1;
    end loop;
end
$$;
comment on function pgaudit_wf.read_log(text, integer) is
    'The events after a cursor (null: from the beginning), at most max_events, in an order in which none is ever skipped or repeated: only those of transactions older than every running one. '
    'Each comes with the cursor to pass next time. A cursor survives dump and restore. Raises PA007 on a cursor of another log.';

-- sql/core/120_directory.sql

-- Who the actors are: two views that an application points at its own tables with CREATE OR REPLACE VIEW.

create view pgaudit_wf.actor_directory as
select
    null::text as actor_id,
    null::text as name,
    null::text as email
where false;
comment on view pgaudit_wf.actor_directory is
    'Names of actors, looked up when the trail is read. Empty until you point it at your own users: create or replace view pgaudit_wf.actor_directory as select id::text as actor_id, name, email from …';
comment on column pgaudit_wf.actor_directory.actor_id is 'Id as in app.actor_id.';
comment on column pgaudit_wf.actor_directory.name is 'Name as shown to people.';
comment on column pgaudit_wf.actor_directory.email is 'E-mail address.';

create view pgaudit_wf.org_member as
select
    null::text as org_id,
    null::text as actor_id,
    null::text as role
where false;
comment on view pgaudit_wf.org_member is
    'Who belongs to which organisation, and as what: owners and admins may read its trail. Empty until you point it at your own memberships: create or replace view pgaudit_wf.org_member as select org_id::text, user_id::text as actor_id, role::text from …';
comment on column pgaudit_wf.org_member.org_id is 'Id as in app.org_id.';
comment on column pgaudit_wf.org_member.actor_id is 'Id as in app.actor_id.';
comment on column pgaudit_wf.org_member.role is 'Role in the organisation; owner and admin may read.';

create function pgaudit_wf.readable_org() returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
-- Rather an error than the policies of the tables behind the views, run by us.
set row_security = off
as $$
    select m.org_id from pgaudit_wf.org_member as m
    where m.org_id = nullif(current_setting('app.org_id', true), '')
        and m.actor_id = nullif(current_setting('app.actor_id', true), '')
        and m.role in ('owner', 'admin')
    limit 1
$$;
comment on function pgaudit_wf.readable_org() is
    'The organisation whose trail the current actor may read: app.org_id, if org_member has app.actor_id as its owner or admin; else null.';

-- One subquery, evaluated once a query, so that the index on org_id serves the policy too.
alter table pgaudit_wf.security_audit_log enable row level security;
create policy readable_org on pgaudit_wf.security_audit_log for select using (org_id = (select pgaudit_wf.readable_org()));
alter table pgaudit_wf.key_change enable row level security;
create policy readable_org on pgaudit_wf.key_change for select using (org_id = (select pgaudit_wf.readable_org()));

create function pgaudit_wf.describe_actors(org_id text, actor_ids text[] default null, pattern text default null)
returns table (actor_id text, name text, email text, role text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
-- Rather an error than the policies of the tables behind the views, run by us.
set row_security = off
as $$
    select d.actor_id, d.name, d.email, m.role
    from pgaudit_wf.actor_directory as d
    left join pgaudit_wf.org_member as m on m.actor_id = d.actor_id and m.org_id = describe_actors.org_id
    where (describe_actors.actor_ids is null or d.actor_id = any (describe_actors.actor_ids))
        and (describe_actors.pattern is null or d.name ilike describe_actors.pattern or d.email ilike describe_actors.pattern)
        and describe_actors.org_id = (select pgaudit_wf.readable_org())
        -- Of strangers, only those who left a trace in this organisation.
        and (m.actor_id is not null or exists (
            select from pgaudit_wf.security_audit_log as l where l.actor_id = d.actor_id and l.org_id = describe_actors.org_id))
$$;
comment on function pgaudit_wf.describe_actors(text, text[], text) is
    'Name, e-mail and role of the organisation''s members and of actors in its trail, for its owners and admins only: those with the given ids, or whose name or e-mail matches an ILIKE pattern.';

create function pgaudit_wf.grant_directory() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    needed record;
begin
    for needed in
        select d.refobjid::regclass as relation, string_agg(distinct quote_ident(a.attname), ', ') as columns, pgaudit_wf.schema_owner() as reader
        from pg_class as v
        join pg_rewrite as r on r.ev_class = v.oid
        join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0
        join pg_class as c on c.oid = d.refobjid and c.relnamespace not in ('pgaudit_wf'::regnamespace, 'pg_catalog'::regnamespace)
        join pg_attribute as a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        where v.relnamespace = 'pgaudit_wf'::regnamespace and v.relkind = 'v'
            and not has_column_privilege(v.relowner, d.refobjid, d.refobjsubid::smallint, 'select')
        group by d.refobjid
    loop
        begin
            execute format('grant select (%s) on %s to %I', needed.columns, needed.relation, needed.reader);
        exception
            when insufficient_privilege then
                raise warning 'views of pgaudit_wf read %, and % may not (%)', needed.relation, needed.reader, sqlerrm
                    using hint = format('Have its owner run: grant select (%s) on %s to %I', needed.columns, needed.relation, needed.reader);
        end;
    end loop;
end
$$;
comment on function pgaudit_wf.grant_directory() is
    'Lets the owner of our schema, as which they are read, read the columns that actor_directory, org_member and credential_directory name, with the rights of the caller. Where event triggers can be had, CREATE VIEW does it by itself.';

create function pgaudit_wf.actors_like(pattern text) returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
    select d.actor_id from pgaudit_wf.actor_directory as d where d.name ilike actors_like.pattern or d.email ilike actors_like.pattern
$$;
comment on function pgaudit_wf.actors_like(text) is 'Ids of the actors whose name or e-mail matches an ILIKE pattern, for those who may read actor_directory.';

create function pgaudit_wf.resource_names(resource_types text[], resource_ids text[], org_id text) returns table (resource_type text, resource_id text, name text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- From the log, not the table: so nobody's table, policy or type is touched, and what was deleted still has its name.
    select wanted.type, wanted.id, named.label
    from (select distinct u.type, u.id from unnest(resource_names.resource_types, resource_names.resource_ids) as u (type, id)) as wanted,
    lateral (
        select l.metadata ->> 'label' as label from pgaudit_wf.security_audit_log as l
        where l.resource_type = wanted.type and l.resource_id = wanted.id and l.captured and l.metadata ? 'label'
            and (resource_names.org_id is null or l.org_id = resource_names.org_id)
        order by l.occurred_at desc, l.id desc limit 1
    ) as named
$$;
comment on function pgaudit_wf.resource_names(text[], text[], text) is
    'Newest names of resources, by the label column of the attached tables, as far as the caller may read their events; of one organization, or (null) of all.';

-- sql/core/130_audit_trail.sql

-- Reading the trail: filtered, with names, newest first, a page at a time.

create function pgaudit_wf.trail_cursor(occurred_at timestamptz, id bigint) returns text
language sql immutable strict parallel safe
as $$
    select translate(encode(convert_to(format('%s %s', (extract(epoch from occurred_at) * 1000000)::bigint, id), 'UTF8'), 'base64'), '+/=', '-_')
$$;
comment on function pgaudit_wf.trail_cursor(timestamptz, bigint) is 'Opaque place of an event in the trail.';

create function pgaudit_wf.trail_position(cursor text, out occurred_at timestamptz, out id bigint)
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    part text[];
begin
    part := string_to_array(convert_from(decode(
        translate(cursor, '-_', '+/') || repeat('=', -length(cursor) & 3), 'base64'), 'UTF8'), ' ');
    if cardinality(part) <> 2 then
        raise invalid_parameter_value;
    end if;
    occurred_at := timestamptz 'epoch' + part[1]::bigint * interval '1 microsecond';
    id := part[2]::bigint;
exception
    when others then
        raise exception 'the cursor "%" was not made by audit_trail()', left(trail_position.cursor, 100)
            using errcode = 'PA007', hint = 'Pass the cursor of the last event of the previous page, or null for the first page.';
end
$$;
comment on function pgaudit_wf.trail_position(text) is 'The place that an opaque cursor stands for; raises PA007 on anything else.';

create type pgaudit_wf.trail_entry as (
    id bigint,
    occurred_at timestamptz,
    org_id text,
    org_label text,
    actor_id text,
    actor_name text,
    actor_email text,
    actor_role text,
    auth_method text,
    api_key_id text,
    action text,
    resource_type text,
    resource_id text,
    resource_name text,
    outcome text,
    captured boolean,
    diff jsonb,
    metadata jsonb,
    ip inet,
    country text,
    user_agent text,
    correlation_id text,
    db_user text,
    application_name text,
    cursor text
);
comment on type pgaudit_wf.trail_entry is 'An event of the trail as people read it: with the present names of actor and resource, else the ones kept in the event.';

create function pgaudit_wf.like_pattern(text_part text) returns text
language sql immutable strict parallel safe
as $$ select '%' || replace(replace(replace(text_part, '\', '\\'), '%', '\%'), '_', '\_') || '%' $$;
comment on function pgaudit_wf.like_pattern(text) is 'LIKE pattern for a text that contains the given one, taken literally.';

create function pgaudit_wf.present_actors(actor_ids text[], org_ids text[], restricted boolean)
returns table (actor_id text, org_id text, name text, email text, role text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
#variable_conflict use_column
begin
    if present_actors.restricted then
        -- Row-level security has left one organisation.
        return query
            select d.actor_id, asked.org_id, d.name, d.email, d.role
            from (select org_id from unnest(present_actors.org_ids) as org (org_id) where org_id is not null limit 1) as asked,
            lateral pgaudit_wf.describe_actors(asked.org_id, present_actors.actor_ids) as d;
    else
        return query
            select asked.actor_id, asked.org_id, d.name, d.email, (
                select m.role from pgaudit_wf.org_member as m where m.actor_id = asked.actor_id and m.org_id = asked.org_id limit 1)
            from (select distinct pair.actor_id, pair.org_id from unnest(present_actors.actor_ids, present_actors.org_ids) as pair (actor_id, org_id)) as asked
            join pgaudit_wf.actor_directory as d on d.actor_id = asked.actor_id;
    end if;
end
$$;
comment on function pgaudit_wf.present_actors(text[], text[], boolean) is
    'Present names of the actors of a page of the trail, with their roles in the events'' organisations, as far as the caller may see them: $1 actors, $2 organisations, pairwise.';

create function pgaudit_wf.audit_trail(
    org_id text default null,
    action text default null,
    resource_type text default null,
    resource_id text default null,
    actor_id text default null,
    correlation_id text default null,
    outcome text default null,
    since timestamptz default null,
    until timestamptz default null,
    search text default null,
    after text default null,
    page_size integer default 50
) returns setof pgaudit_wf.trail_entry
language plpgsql stable
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
set jit = off
as $$
declare
    restricted constant boolean := row_security_active('pgaudit_wf.security_audit_log');
    org constant text := coalesce(audit_trail.org_id, case when row_security_active('pgaudit_wf.security_audit_log') then nullif(current_setting('app.org_id', true), '') end);
    place record;
    filter text;
begin
    if coalesce(audit_trail.page_size, 0) not between 1 and 1000 then
        raise exception 'page_size must be from 1 to 1000' using errcode = 'PA008';
    end if;
    if restricted and (org is null or org is distinct from pgaudit_wf.readable_org()) then
        raise exception 'only owners and admins of an organisation may read its trail'
            using errcode = 'PA006',
                hint = 'Set app.org_id and app.actor_id in the transaction; pgaudit_wf.org_member must have the actor as owner or admin of it.';
    end if;
    select p.occurred_at, p.id into place from pgaudit_wf.trail_position(audit_trail.after) as p;

    -- Only the conditions in use, so that each combination gets the index that serves it.
    filter := concat(
        case when org is not null then ' and l.org_id = $1' end,
        case when audit_trail.action is not null then case when strpos(audit_trail.action, '*') > 0
            then ' and l.action like replace(replace(replace(replace($2, ''\'', ''\\''), ''%'', ''\%''), ''_'', ''\_''), ''*'', ''%'')' else ' and l.action = $2' end end,
        case when audit_trail.resource_type is not null then ' and l.resource_type = $3' end,
        case when audit_trail.resource_id is not null then ' and l.resource_id = $4' end,
        case when audit_trail.actor_id is not null then ' and l.actor_id = $5' end,
        case when audit_trail.correlation_id is not null then ' and l.correlation_id = $6' end,
        case when audit_trail.outcome is not null then ' and l.outcome = $7' end,
        case when audit_trail.since is not null then ' and l.occurred_at >= $8' end,
        case when audit_trail.until is not null then ' and l.occurred_at < $9' end,
        case when place.id is not null then ' and (l.occurred_at, l.id) < ($11, $12)' end,
        case when audit_trail.search is not null then
            ' and (l.actor_label ilike $10 or l.action ilike $10 or l.resource_id ilike $10 or l.metadata ->> ''label'' ilike $10'
            ' or l.metadata ->> ''reason'' ilike $10 or host(l.ip) ilike $10 or l.user_agent ilike $10 or l.correlation_id ilike $10'
            ' or l.actor_id in (select d.actor_id from ' || case when restricted
                then 'pgaudit_wf.describe_actors($1, pattern => $10) as d'
                else 'pgaudit_wf.actors_like($10) as d (actor_id)' end || '))'
        end);
    -- In one statement, whose rows are never all in one value: that could not be larger than 1 GB.
    return query execute 'with event as materialized (select l.* from pgaudit_wf.security_audit_log as l where true'
        || filter || ' order by l.occurred_at desc, l.id desc limit $13), actor as (
            select d.* from pgaudit_wf.present_actors(
                array(select e.actor_id from event as e order by e.id), array(select e.org_id from event as e order by e.id), $14) as d
        ), resource as (
            select n.* from pgaudit_wf.resource_names(
                array(select e.resource_type from event as e order by e.id), array(select e.resource_id from event as e order by e.id), $1) as n
        )
        select
            e.id, e.occurred_at, e.org_id, e.org_label,
            e.actor_id, left(coalesce(actor.name, e.actor_label), 255), left(actor.email, 255), left(actor.role, 255),
            e.auth_method, e.api_key_id, e.action, e.resource_type, e.resource_id, left(coalesce(resource.name, e.metadata ->> ''label''), 255),
            e.outcome::text, e.captured,
            case when pg_column_size(e.diff) < 256 then e.diff else pgaudit_wf.readable_json(e.diff, 16777216) end,
            case when pg_column_size(e.metadata) < 256 then e.metadata else pgaudit_wf.readable_json(e.metadata, 16777216) end, e.ip, e.country, e.user_agent, e.correlation_id, e.db_user, e.application_name,
            pgaudit_wf.trail_cursor(e.occurred_at, e.id)
        from event as e
        left join actor on actor.actor_id = e.actor_id and actor.org_id is not distinct from e.org_id
        left join resource on resource.resource_type = e.resource_type and resource.resource_id = e.resource_id
        order by e.occurred_at desc, e.id desc'
        using org, audit_trail.action, audit_trail.resource_type, audit_trail.resource_id, audit_trail.actor_id, audit_trail.correlation_id,
            audit_trail.outcome, audit_trail.since, audit_trail.until, pgaudit_wf.like_pattern(audit_trail.search), place.occurred_at, place.id,
            audit_trail.page_size, restricted;
end
$$;
comment on function pgaudit_wf.audit_trail(text, text, text, text, text, text, text, timestamptz, timestamptz, text, text, integer) is
    'A page of the trail, newest first. Every filter is optional: org_id, action (* is a wildcard: api_key.*), resource_type, resource_id, actor_id, correlation_id, outcome, since (inclusive) and until (exclusive), '
    'search (text in names, labels, action, address, user agent, ids). A diff or metadata of more than 16 MiB is given by SHA-256 and length. Next page: after => the cursor of the last event. The reader role sees the organisation app.org_id only, and only if app.actor_id is its owner or admin (else PA006). '
    'Raises PA007 on a cursor that is none, PA008 on a page_size outside 1 to 1000.';

-- sql/core/135_follow_trail.sql

-- The trail as it grows: audit_trail() looks back, this goes on from where one stopped.

create function pgaudit_wf.log_end() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- The place just below the oldest transaction that is still running: what read_log() would have given already.
    select format('%s/%s/%s/%s', g.system_identifier, g.first_id, pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1, 999999999999999999)
    from pgaudit_wf.log_generations() as g
    where g.last_id is null
$$;
comment on function pgaudit_wf.log_end() is
    'Cursor for read_log() and follow_trail() that stands behind all they could give now: with it one follows what is to come, without reading what was.';

create function pgaudit_wf.follow_trail(
    after text,
    org_id text default null,
    action text default null,
    resource_type text default null,
    resource_id text default null,
    actor_id text default null,
    correlation_id text default null,
    outcome text default null,
    since timestamptz default null,
    until timestamptz default null,
    search text default null,
    max_events integer default 200
) returns table (cursor text, entry pgaudit_wf.trail_entry)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    batch record;
    is_one_page boolean;
begin
    select
        array_agg(r.cursor order by r.position) as cursors, array_agg((r.event).id order by r.position) as ids,
        array_agg((r.event).occurred_at order by r.position) as times, min((r.event).occurred_at) as first, max((r.event).occurred_at) as last
    into batch
    from pgaudit_wf.read_log(follow_trail.after, follow_trail.max_events) with ordinality as r (cursor, event, position);
    if batch.ids is null then
        return;
    end if;
    -- Filters and names are those of audit_trail(). A batch mostly is all that happened in its time, so one page has it; that of a long
    -- transaction is not: then each event is asked for by its exact place. Counted first, as an array of entries could not exceed 1 GB.
    since := greatest(follow_trail.since, batch.first);
    until := least(follow_trail.until, batch.last + interval '1 microsecond');
    is_one_page := 1000 > (
        select count(*) from pgaudit_wf.audit_trail(
            follow_trail.org_id, follow_trail.action, follow_trail.resource_type, follow_trail.resource_id, follow_trail.actor_id,
            follow_trail.correlation_id, follow_trail.outcome, follow_trail.since, follow_trail.until, follow_trail.search, null, 1000));
    if is_one_page then
        return query
            select place.cursor, e
            from unnest(batch.cursors, batch.ids) with ordinality as place (cursor, id, position)
            left join pgaudit_wf.audit_trail(
                follow_trail.org_id, follow_trail.action, follow_trail.resource_type, follow_trail.resource_id, follow_trail.actor_id,
                follow_trail.correlation_id, follow_trail.outcome, follow_trail.since, follow_trail.until, follow_trail.search, null, 1000) as e
                on e.id = place.id
            order by place.position;
    else
        return query
            select place.cursor, e
            from unnest(batch.cursors, batch.ids, batch.times) with ordinality as place (cursor, id, occurred_at, position)
            left join lateral pgaudit_wf.audit_trail(
                follow_trail.org_id, follow_trail.action, follow_trail.resource_type, follow_trail.resource_id, follow_trail.actor_id,
                follow_trail.correlation_id, follow_trail.outcome, greatest(follow_trail.since, place.occurred_at),
                least(follow_trail.until, place.occurred_at + interval '1 microsecond'), follow_trail.search,
                pgaudit_wf.trail_cursor(place.occurred_at, place.id + 1), 1) as e on e.id = place.id
            order by place.position;
    end if;
end
$$;
comment on function pgaudit_wf.follow_trail(text, text, text, text, text, text, text, text, timestamptz, timestamptz, text, integer) is
    'read_log() for people: up to max_events events after the cursor (of read_log() or log_end()), each as an entry of audit_trail(), or null where the filters, which are those of audit_trail(), leave it out. '
    'Keep the cursor of every row, also of one without an entry: nothing is skipped or repeated then. Raises PA007 on a cursor of another log.';

-- sql/core/140_row_as_of.sql

-- What a row was at a moment, from the log.

create function pgaudit_wf.apply_diff(record jsonb, diff jsonb) returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    op jsonb;
begin
    for op in select jsonb_array_elements(apply_diff.diff) loop
        record := case
            when op ->> 'path' = '' then op -> 'value'
            else coalesce(record, '{}') || jsonb_build_object(pgaudit_wf.unpointer(op ->> 'path'), op -> 'value')
        end;
    end loop;
    return record;
end
$$;
comment on function pgaudit_wf.apply_diff(jsonb, jsonb) is
    'A row after a captured diff: RFC 6902, but that a column added to the table meanwhile may be missing from the row.';

create function pgaudit_wf.revert_diff(record jsonb, diff jsonb) returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    op jsonb;
begin
    for op in select value from jsonb_array_elements(revert_diff.diff) with ordinality order by ordinality desc loop
        record := case
            when op ->> 'path' = '' then op -> 'old'
            else coalesce(record, '{}') || jsonb_build_object(pgaudit_wf.unpointer(op ->> 'path'), op -> 'old')
        end;
    end loop;
    return record;
end
$$;
comment on function pgaudit_wf.revert_diff(jsonb, jsonb) is 'A row before a captured diff, by its "old" values; null before an insert.';

create function pgaudit_wf.unpointer(pointer text) returns text
language sql immutable strict parallel safe
as $$ select replace(replace(substr(pointer, 2), '~1', '/'), '~0', '~') $$;
comment on function pgaudit_wf.unpointer(text) is 'The member that a JSON pointer of one step names (RFC 6901, section 4).';

create function pgaudit_wf.alter_row(record jsonb, altered jsonb, backwards boolean) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- A dropped column is lost for good; an added one starts with its default.
    select case when record is null then null when backwards then
        coalesce((
            select jsonb_object_agg(coalesce(rename.key, member.key), member.value)
            from jsonb_each(record) as member
            left join jsonb_each_text(altered -> 'renamed') as rename on rename.value = member.key
            where altered -> 'added' is null or not altered -> 'added' ? member.key), '{}')
    else
        coalesce(altered -> 'added', '{}') || coalesce((
            select jsonb_object_agg(coalesce(altered -> 'renamed' ->> member.key, member.key), member.value)
            from jsonb_each(record) as member
            where altered -> 'dropped' is null or not altered -> 'dropped' ? member.key), '{}')
    end
$$;
comment on function pgaudit_wf.alter_row(jsonb, jsonb, boolean) is 'A row after (or, backwards, before) its table was altered, by attachment_history.detail.';

create type pgaudit_wf.row_step as (
    occurred_at timestamptz,
    id bigint,
    diff jsonb,
    altered jsonb,
    previous_id text
);
comment on type pgaudit_wf.row_step is 'What happened to a row: an event, or its table being altered.';

create function pgaudit_wf.row_steps(resource_type text, resource_id text, since timestamptz, until timestamptz, after_id bigint, before_id bigint)
returns setof pgaudit_wf.row_step
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select occurred_at, id, diff, altered, previous_id from (
        select l.occurred_at, l.id, l.diff, null::jsonb as altered, l.metadata ->> 'previous_resource_id' as previous_id
        from pgaudit_wf.security_audit_log as l
        where l.resource_type = row_steps.resource_type and l.resource_id = row_steps.resource_id and l.captured
            and l.occurred_at >= row_steps.since and l.occurred_at <= row_steps.until
            and l.id > row_steps.after_id and l.id < row_steps.before_id
        union all
        select h.occurred_at, null, null, h.detail, null
        from pgaudit_wf.attachment_history as h
        where h.resource_type = row_steps.resource_type and h.change = 'altered'
            and h.occurred_at > row_steps.since and h.occurred_at <= row_steps.until
    ) as step
    order by occurred_at, id
$$;
comment on function pgaudit_wf.row_steps(text, text, timestamptz, timestamptz, bigint, bigint) is
    'What happened to a row between two moments and two event ids, oldest first.';

create function pgaudit_wf.row_departure(resource_type text, resource_id text, after_id bigint, before_id bigint, latest boolean)
returns table (id bigint, occurred_at timestamptz, new_id text, diff jsonb)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select l.id, l.occurred_at, k.new_id, l.diff
    from pgaudit_wf.key_change as k
    join pgaudit_wf.security_audit_log as l
        on l.resource_type = k.resource_type and l.resource_id = k.new_id and l.metadata ->> 'previous_resource_id' = k.old_id
    where k.resource_type = row_departure.resource_type and k.old_id = row_departure.resource_id
        and l.id > row_departure.after_id and l.id < row_departure.before_id
    order by case when row_departure.latest then -l.id else l.id end
    limit 1
$$;
comment on function pgaudit_wf.row_departure(text, text, bigint, bigint, boolean) is
    'The first (or latest) event by which a row left this key for another.';

create function pgaudit_wf.row_forwards(resource_type text, resource_id text, at timestamptz, before_id bigint, truncates boolean,
    out reached boolean, out record jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    base record;
    step pgaudit_wf.row_step;
    earlier record;
begin
    reached := false;
    select l.id, l.occurred_at, l.diff, l.metadata ->> 'previous_resource_id' as previous_id into base
    from pgaudit_wf.security_audit_log as l
    where l.resource_type = row_forwards.resource_type and l.resource_id = row_forwards.resource_id and l.captured
        and l.occurred_at <= at and l.id < before_id
        and (l.diff -> 0 ->> 'path' = '' or l.metadata ? 'previous_resource_id')
    order by l.occurred_at desc, l.id desc limit 1;
    if base.id is null then
        return;
    end if;
    if base.previous_id is null then
        reached := true;
        record := pgaudit_wf.apply_diff(null, base.diff);
    else
        select * into earlier from pgaudit_wf.row_forwards(resource_type, base.previous_id, base.occurred_at, base.id, truncates);
        if not earlier.reached then
            return;
        end if;
        reached := true;
        record := pgaudit_wf.apply_diff(earlier.record, base.diff);
    end if;
    if truncates and exists (
        select from pgaudit_wf.security_audit_log as l
        where l.action = resource_type || '.truncated' and l.captured and l.id > base.id and l.id < before_id and l.occurred_at between base.occurred_at and at)
        or exists (
            select from pgaudit_wf.row_departure(resource_type, resource_id, base.id, before_id, true) as d where d.occurred_at <= at)
    then
        record := null;
        return;
    end if;
    for step in select s.* from pgaudit_wf.row_steps(resource_type, resource_id, base.occurred_at, at, base.id, before_id) as s loop
        record := case when step.altered is null then pgaudit_wf.apply_diff(record, step.diff) else pgaudit_wf.alter_row(record, step.altered, false) end;
    end loop;
end
$$;
comment on function pgaudit_wf.row_forwards(text, text, timestamptz, bigint, boolean) is
    'A row at a moment, replayed from its insert; not reached if the log does not go back to it.';

create function pgaudit_wf.row_backwards(target regclass, resource_type text, resource_id text, at timestamptz, after_id bigint) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    ending record;
    departure record;
    record jsonb;
    step pgaudit_wf.row_step;
begin
    select l.id, l.occurred_at, l.diff into ending
    from pgaudit_wf.security_audit_log as l
    where l.resource_type = row_backwards.resource_type and l.resource_id = row_backwards.resource_id and l.captured
        and l.occurred_at > at and l.id > after_id
        and (l.diff -> 0 ->> 'path' = '' or l.metadata ? 'previous_resource_id')
    order by l.occurred_at, l.id limit 1;
    select d.* into departure
    from pgaudit_wf.row_departure(resource_type, resource_id, after_id, coalesce(ending.id, 9223372036854775807), false) as d where d.occurred_at > at;
    if departure.id is not null then
        ending.id := departure.id;
        ending.occurred_at := departure.occurred_at;
        record := pgaudit_wf.revert_diff(
            pgaudit_wf.row_backwards(target, resource_type, departure.new_id, departure.occurred_at, departure.id), departure.diff);
    elsif ending.id is null then
        record := pgaudit_wf.present_row(target, resource_id);
    elsif ending.diff -> 0 ->> 'op' = 'remove' then
        record := ending.diff -> 0 -> 'old';
    else
        return null;
    end if;
    for step in
        select s.* from pgaudit_wf.row_steps(resource_type, resource_id, at, coalesce(ending.occurred_at, 'infinity'), after_id,
            coalesce(ending.id, 9223372036854775807)) as s
        where s.occurred_at > at order by s.occurred_at desc, s.id desc
    loop
        record := case when step.altered is null then pgaudit_wf.revert_diff(record, step.diff) else pgaudit_wf.alter_row(record, step.altered, true) end;
    end loop;
    return record;
end
$$;
comment on function pgaudit_wf.row_backwards(regclass, text, text, timestamptz, bigint) is
    'A row at a moment, wound back from its deletion or from what it is now, for rows older than their table''s attachment.';

create function pgaudit_wf.present_row(target regclass, resource_id text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- As the triggers write it, whatever the session likes to read.
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres'
set bytea_output = 'hex'
set lc_monetary = 'C'
set extra_float_digits = 1
set quote_all_identifiers = off
as $$
declare
    setting pgaudit_wf.attachment := (select a from pgaudit_wf.attachment as a where a.target = present_row.target);
    record jsonb;
begin
    if setting.target is null or not has_table_privilege(present_row.target, 'select')
        or (select relkind from pg_class where oid = present_row.target) not in ('r', 'p')
        -- Whoever asks runs the table's policies with his own rights; we do not with ours.
        or (current_user = pgaudit_wf.schema_owner() and row_security_active(present_row.target))
    then
        return null;
    end if;
    -- An alias that no column has, or the column would be taken for the row.
    execute format('select %s from %s as pgaudit_wf_row where %s', pgaudit_wf.row_expression(setting, 'pgaudit_wf_row'), setting.target,
        pgaudit_wf.key_condition(setting, 'pgaudit_wf_row'))
        into record using present_row.resource_id;
    return record;
end
$$;
comment on function pgaudit_wf.present_row(regclass, text) is
    'An attached table''s row as it is now, less ignored and redacted columns; null without the right to read the table.';

create function pgaudit_wf.row_as_of(target regclass, id text, at timestamptz default clock_timestamp()) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment := (select a from pgaudit_wf.attachment as a where a.target = row_as_of.target);
    type constant text := coalesce(setting.resource_type,
        (select h.resource_type from pgaudit_wf.attachment_history as h where h.target = row_as_of.target::text order by h.id desc limit 1));
    key constant text := case when cardinality(setting.id_columns) > 1 then pgaudit_wf.bounded_key((row_as_of.id::jsonb)::text)
        else pgaudit_wf.bounded_key(row_as_of.id) end;
    forwards record;
begin
    if type is null then
        raise exception '% was never attached', row_as_of.target
            using errcode = 'PA005', hint = 'The view pgaudit_wf.attached lists what is.';
    end if;
    select * into forwards from pgaudit_wf.row_forwards(type, key, row_as_of.at, 9223372036854775807,
        (select relkind <> 'p' from pg_class where oid = row_as_of.target));
    if forwards.reached then
        return forwards.record;
    end if;
    return pgaudit_wf.row_backwards(row_as_of.target, type, key, row_as_of.at, -1);
end
$$;
comment on function pgaudit_wf.row_as_of(regclass, text, timestamptz) is
    'The row of an attached table as it was at a moment, as jsonb; null if there was none. id is the key''s text, several key columns as a JSON array. '
    'Rebuilt from the log: forwards from the row''s insert, or, for a row older than the attachment, backwards from its deletion or from what it is now. '
    'Ignored columns are absent, redacted ones read "[redacted]"; a TRUNCATE of a single partition is not seen. Raises PA005 for a table that was never attached.';

-- sql/core/150_api_key_activity.sql

-- API keys as the log knows them: revoked and deleted ones too.

create view pgaudit_wf.api_key_activity with (security_invoker = true) as
select
    l.resource_id as api_key_id,
    (array_agg(l.org_id order by l.occurred_at desc, l.id desc) filter (where l.org_id is not null))[1] as org_id,
    (array_agg(l.metadata ->> 'label' order by l.occurred_at desc, l.id desc) filter (where l.metadata ? 'label'))[1] as label,
    case
        when bool_or(l.action like '%.deleted' or l.diff -> 0 ->> 'op' = 'remove') then 'deleted'
        when bool_or(l.action like '%.revoked') then 'revoked'
        else 'active'
    end as status,
    min(l.occurred_at) filter (where l.action like '%.created') as created_at,
    (array_agg(l.actor_id order by l.occurred_at, l.id) filter (where l.action like '%.created'))[1] as created_by,
    min(l.occurred_at) filter (where l.action like '%.revoked') as revoked_at,
    (array_agg(l.actor_id order by l.occurred_at, l.id) filter (where l.action like '%.revoked'))[1] as revoked_by,
    max(l.occurred_at) filter (where l.diff -> 0 ->> 'op' = 'remove') as deleted_at,
    count(*) as events,
    max(l.occurred_at) as last_event_at
from pgaudit_wf.security_audit_log as l
where l.resource_type = 'api_key' and l.outcome = 'succeeded'
group by l.resource_id;
comment on view pgaudit_wf.api_key_activity is
    'Every API key that the log knows (resource type api_key), revoked and deleted ones included: who made it, who revoked it, and when. The reader role sees its organisation''s.';
comment on column pgaudit_wf.api_key_activity.api_key_id is 'Id of the key.';
comment on column pgaudit_wf.api_key_activity.org_id is 'Organisation of the key; null for a user''s own key.';
comment on column pgaudit_wf.api_key_activity.label is 'Its name when it last changed.';
comment on column pgaudit_wf.api_key_activity.status is 'active, revoked or deleted.';
comment on column pgaudit_wf.api_key_activity.created_at is 'When it was made; null if before its table was attached.';
comment on column pgaudit_wf.api_key_activity.created_by is 'Actor who made it.';
comment on column pgaudit_wf.api_key_activity.revoked_at is 'When it was revoked first.';
comment on column pgaudit_wf.api_key_activity.revoked_by is 'Actor who revoked it.';
comment on column pgaudit_wf.api_key_activity.deleted_at is 'When its row was deleted.';
comment on column pgaudit_wf.api_key_activity.events is 'Number of events of the key.';
comment on column pgaudit_wf.api_key_activity.last_event_at is 'Time of the last one.';

-- sql/core/200_canonical_json.sql

-- RFC 8785 (JSON Canonicalization Scheme) for jsonb: the one text that every language's RFC 8785 library produces for the
-- same document, so that a content hash can be recomputed anywhere.
--
-- jsonb's own text differs from it in four points: keys are ordered by length, there are blanks after ':' and ',', numbers
-- keep the digits they were written with, and repeated keys are already gone (the last one won, as in JavaScript). String
-- escapes are the same: PostgreSQL escapes the quote, the backslash and control characters, and nothing else.

create or replace function pgaudit_wf.utf16_order(key text)
returns text
language sql
immutable
parallel safe
-- Not strict, so that the planner inlines it: ASCII, which is nearly every key, then costs two lengths.
return case
    when octet_length(utf16_order.key) = length(utf16_order.key) then utf16_order.key
    else regexp_replace(
        replace(utf16_order.key, U&'\D7FF', U&'\D7FF\0001'),
        U&'([\+010000-\+10FFFF])', U&'\D7FF\\1', 'g')
end;

comment on function pgaudit_wf.utf16_order(text) is
    'A text whose byte order is the UTF-16 code unit order of key, as RFC 8785 sorts: characters from U+10000 on (surrogates in '
    'UTF-16) move between U+D7FF and U+E000. Texts without such characters stay as they are.';


create or replace function pgaudit_wf.canonical_number(value numeric)
returns text
language plpgsql
immutable
strict
parallel safe
-- float8's text is the shortest that reads back the same only while this is positive, and a session may say otherwise.
set extra_float_digits = 1
as $$
declare
    plain text := trim_scale(canonical_number.value)::text;
    magnitude numeric := abs(canonical_number.value);
    sign text := case when canonical_number.value < 0 then '-' else '' end;
    double text;
    digits text;
    point int;
    shorter text;
begin
    -- Up to 15 significant digits survive the way to a double and back, so the decimal is the shortest form already.
    if length(plain) <= 15 and (magnitude >= 0.000001 or magnitude = 0) then
        return plain;
    end if;
    -- 2^1024 - 2^970 and beyond rounds to infinity.
    if magnitude > 1e308 and magnitude >= 2::numeric ^ 1024 - 2::numeric ^ 970 then
        raise exception 'number out of range for canonical JSON: % has a magnitude over 1.7976931348623157e308',
            case when length(plain) <= 40 then plain else left(plain, 20) || '… (' || length(plain) || ' characters)' end
            using errcode = 'PA201',
                  hint = 'RFC 8785 numbers are IEEE 754 doubles; keep larger ones as strings.';
    end if;
    -- 2^-1075 and below rounds to zero, where a cast to float8 would raise.
    if magnitude < 1e-320 and magnitude * 2::numeric ^ 1075 <= 1 then
        return '0';
    end if;
    double := magnitude::float8::text;
    digits := split_part(double, 'e', 1);
    point := coalesce(nullif(strpos(digits, '.'), 0) - 1, length(digits))
        + coalesce(nullif(split_part(double, 'e', 2), '')::int, 0);
    digits := replace(digits, '.', '');
    point := point - (length(digits) - length(ltrim(digits, '0')));
    digits := trim(digits, '0');
    -- PostgreSQL does not use a decimal that lies exactly between two doubles; ECMAScript does where it reads back as this one
    -- (1e23). Such a decimal can be shorter only for an integer over 2^53 with at most 40 digits.
    if length(digits) >= 16 and point between 16 and 40 then
        foreach shorter in array array[left(digits, -1), (left(digits, -1)::numeric + 1)::text] loop
            if (shorter || 'e' || (point - length(digits) + 1))::float8 = double::float8 then
                point := length(shorter) + point - length(digits) + 1;
                digits := rtrim(shorter, '0');
                exit;
            end if;
        end loop;
    end if;
    return sign || case
        when point > 21 or point <= -6 then
            left(digits, 1)
            || case when length(digits) > 1 then '.' || substr(digits, 2) else '' end
            || 'e' || case when point > 0 then '+' else '' end || (point - 1)
        when point <= 0 then '0.' || repeat('0', -point) || digits
        when length(digits) <= point then rpad(digits, point, '0')
        else left(digits, point) || '.' || substr(digits, point + 1)
    end;
end
$$;

comment on function pgaudit_wf.canonical_number(numeric) is
    'A number as RFC 8785 (ECMAScript) writes it: rounded to the nearest IEEE 754 double, shortest digits, exponent only below '
    '1e-6 and from 1e21 on. Raises PA201 where no double is large enough; what is too small is 0.';


create or replace function pgaudit_wf.canonical_json_at(value jsonb, depth int)
returns text
language plpgsql
immutable
strict
parallel safe
as $$
declare
    canonical text;
begin
    -- Raising here would print the whole recursion as context; no JSON text holds a bare control character, so canonical_checked
    -- can tell.
    if canonical_json_at.depth > 200 then
        return chr(1);
    end if;
    -- One statement a container, and scalars inside it: measured, a call for each scalar would double the cost.
    if jsonb_typeof(canonical_json_at.value) = 'object' then
        select '{' || string_agg(
                concat_ws(':', to_json(member.key), pgaudit_wf.canonical_value(member.value, canonical_json_at.depth + 1)),
                ',' order by pgaudit_wf.utf16_order(member.key) collate "C") || '}'
            into canonical
            from jsonb_each(canonical_json_at.value) as member;
        return coalesce(canonical, '{}');
    elsif jsonb_typeof(canonical_json_at.value -> 0) = 'object' and canonical_json_at.depth < 200 then
        -- The usual array of objects in one statement too.
        select '[' || string_agg(
                case when jsonb_typeof(element) <> 'object'
                    then pgaudit_wf.canonical_value(element, canonical_json_at.depth + 1)
                    else (
                        select '{' || coalesce(string_agg(
                                concat_ws(':', to_json(member.key), pgaudit_wf.canonical_value(member.value, canonical_json_at.depth + 2)),
                                ',' order by pgaudit_wf.utf16_order(member.key) collate "C"), '') || '}'
                            from jsonb_each(element) as member)
                end, ',') || ']'
            into canonical
            from jsonb_array_elements(canonical_json_at.value) as element;
        return canonical;
    elsif jsonb_typeof(canonical_json_at.value) = 'array' then
        select '[' || string_agg(pgaudit_wf.canonical_value(element, canonical_json_at.depth + 1), ',') || ']'
            into canonical
            from jsonb_array_elements(canonical_json_at.value) as element;
        return coalesce(canonical, '[]');
    elsif jsonb_typeof(canonical_json_at.value) = 'number' then
        return pgaudit_wf.canonical_number(canonical_json_at.value::numeric);
    end if;
    return canonical_json_at.value::text;
end
$$;

comment on function pgaudit_wf.canonical_json_at(jsonb, int) is
    'The step of canonical_json that counts how deep it is. Internal: call canonical_json.';


create or replace function pgaudit_wf.canonical_value(value jsonb, depth int)
returns text
language sql
immutable
parallel safe
return case jsonb_typeof(canonical_value.value)
    when 'string' then canonical_value.value::text
    when 'object' then pgaudit_wf.canonical_json_at(canonical_value.value, canonical_value.depth)
    when 'array' then pgaudit_wf.canonical_json_at(canonical_value.value, canonical_value.depth)
    when 'number' then
        case when length(canonical_value.value::text) < 16 and strpos(canonical_value.value::text, '.') = 0
            then canonical_value.value::text
            else pgaudit_wf.canonical_number(canonical_value.value::numeric) end
    else canonical_value.value::text
end;

comment on function pgaudit_wf.canonical_value(jsonb, int) is
    'canonical_json_at for a value that is most often a string. Not strict, so that the planner inlines it. Internal.';


create or replace function pgaudit_wf.canonical_checked(canonical text)
returns text
language plpgsql
immutable
strict
parallel safe
as $$
begin
    if strpos(canonical_checked.canonical, chr(1)) > 0 then
        raise exception 'JSON nested more than 200 levels deep has no canonical form here'
            using errcode = 'PA202',
                  hint = 'Keep deeply nested data as a JSON string, or flatten it.';
    end if;
    return canonical_checked.canonical;
end
$$;

comment on function pgaudit_wf.canonical_checked(text) is
    'The text as it is, or PA202 if canonical_json_at met nesting it does not follow. Internal: call canonical_json.';


create or replace function pgaudit_wf.canonical_json(value jsonb)
returns text
language plpgsql
immutable
strict
parallel safe
-- Or each step would be planned anew, for the one depth that it is at.
set plan_cache_mode = force_generic_plan
as $$
begin
    return pgaudit_wf.canonical_checked(pgaudit_wf.canonical_json_at(canonical_json.value, 1));
end
$$;

comment on function pgaudit_wf.canonical_json(jsonb) is
    'The RFC 8785 canonical text of a JSON document: encode it as UTF-8 and any RFC 8785 library gives the same bytes. Numbers '
    'are rounded to IEEE 754 doubles. Raises PA201 for a number no double can hold and PA202 for nesting over 200 levels.';

-- sql/core/210_config_alias.sql

-- Spellings of configuration keys that older editors saved. As rows, so that an application with a history of its own adds
-- its renames without touching a function.

create table pgaudit_wf.config_alias (
    alias text primary key check (alias <> ''),
    canonical_name text check (canonical_name <> alias)
);

comment on table pgaudit_wf.config_alias is
    'Keys of a node''s data.config that normalize_definition reads under another name or not at all. A change here changes what '
    'later versions hash to: a definition that uses the alias gets a new version at its next save, and old hashes stay as they '
    'were.';
comment on column pgaudit_wf.config_alias.alias is 'The key as it may be found in data.config.';
comment on column pgaudit_wf.config_alias.canonical_name is
    'The key it stands for; null: the key means nothing and is dropped. Where the canonical key is there too, its value wins. '
    'A canonical name is final: it is not looked up as an alias again.';

insert into pgaudit_wf.config_alias (alias, canonical_name) values
    ('args', 'functionArgs'),
    ('abiFunctionKey', null);


create or replace function pgaudit_wf.normalize_config(config jsonb)
returns jsonb
language sql
stable
strict
parallel safe
return (
    select coalesce(
            (select jsonb_object_agg(canonical_name, value) from (
                -- Two aliases of one name: the first in byte order wins.
                select distinct on (config_alias.canonical_name)
                    config_alias.canonical_name, normalize_config.config -> config_alias.alias as value
                from pgaudit_wf.config_alias
                where config_alias.canonical_name is not null and normalize_config.config ? config_alias.alias
                order by config_alias.canonical_name, config_alias.alias collate "C"
            ) as renamed),
            '{}')
        || (normalize_config.config - coalesce((select array_agg(config_alias.alias) from pgaudit_wf.config_alias), '{}'))
);

comment on function pgaudit_wf.normalize_config(jsonb) is
    'A node''s configuration object under the canonical names of config_alias, ignored keys dropped. Values stay as they are.';

-- sql/core/220_normalize_definition.sql

-- What of a workflow makes a version: of a node its id, type and data, of an edge its ends, handles, id and data. The canvas
-- (position, selection, size, style, colour, …) is everything else, whatever an editor calls it, so this is an allow-list.
--
-- The order of nodes and edges is kept: it is part of the stored definition, and a hash over the arrays as saved is what
-- anybody outside recomputes without a sorting rule of ours. Absent and null stay different for the same reason.

create or replace function pgaudit_wf.graph_array(value jsonb, column_name text)
returns jsonb
language plpgsql
immutable
parallel safe
as $$
begin
    if jsonb_typeof(graph_array.value) = 'array' then
        return graph_array.value;
    elsif coalesce(jsonb_typeof(graph_array.value), 'null') = 'null' then
        return '[]';
    end if;
    raise exception '% is a JSON %, not an array', graph_array.column_name, jsonb_typeof(graph_array.value)
        using errcode = 'PA203',
              hint = format('Store the %s of a workflow as a JSON array, one object each.', graph_array.column_name);
end
$$;

comment on function pgaudit_wf.graph_array(jsonb, text) is
    'The array itself, an empty one for null; raises PA203, naming the column, for anything else. Internal.';


-- The three functions below take the common shapes first. A function with a subquery is not inlined, so what needs one stands
-- apart, in PL/pgSQL: before PostgreSQL 18 a SQL function is planned anew for each query.

create or replace function pgaudit_wf.keep_keys(value jsonb, keys text[])
returns jsonb
language plpgsql
immutable
strict
parallel safe
as $$
begin
    return keep_keys.value - array(
        select field from jsonb_object_keys(keep_keys.value) as field where field <> all (keep_keys.keys));
end
$$;

comment on function pgaudit_wf.keep_keys(jsonb, text[]) is 'A JSON object with only the keys named. Internal.';


create or replace function pgaudit_wf.normalize_node(node jsonb, aliases text[])
returns jsonb
language sql
stable
parallel safe
return case
    when jsonb_typeof(normalize_node.node) <> 'object' then normalize_node.node
    when normalize_node.node -> 'data' -> 'config' ?| normalize_node.aliases
        and jsonb_typeof(normalize_node.node -> 'data' -> 'config') = 'object'
    then jsonb_set(
        pgaudit_wf.keep_keys(normalize_node.node, '{id,type,data}'), '{data,config}',
        pgaudit_wf.normalize_config(normalize_node.node -> 'data' -> 'config'))
    when normalize_node.node ?& '{id,type,data}' then jsonb_build_object(
        'id', normalize_node.node -> 'id',
        'type', normalize_node.node -> 'type',
        'data', normalize_node.node -> 'data')
    else pgaudit_wf.keep_keys(normalize_node.node, '{id,type,data}')
end;

comment on function pgaudit_wf.normalize_node(jsonb, text[]) is
    'The meaningful part of one node. aliases is every alias of config_alias, read once by the caller. What is no object is '
    'returned as it is, so that no malformed node disappears. Internal.';


create or replace function pgaudit_wf.normalize_edge(edge jsonb)
returns jsonb
language plpgsql
immutable
parallel safe
as $$
begin
    return case
        when jsonb_typeof(normalize_edge.edge) <> 'object' then normalize_edge.edge
        when normalize_edge.edge ? 'data' or not normalize_edge.edge ?& '{id,source,target}'
        then pgaudit_wf.keep_keys(normalize_edge.edge, '{id,source,target,sourceHandle,targetHandle,data}')
        when normalize_edge.edge ?& '{sourceHandle,targetHandle}' then jsonb_build_object(
            'id', normalize_edge.edge -> 'id',
            'source', normalize_edge.edge -> 'source',
            'target', normalize_edge.edge -> 'target',
            'sourceHandle', normalize_edge.edge -> 'sourceHandle',
            'targetHandle', normalize_edge.edge -> 'targetHandle')
        when not normalize_edge.edge ?| '{sourceHandle,targetHandle}' then jsonb_build_object(
            'id', normalize_edge.edge -> 'id',
            'source', normalize_edge.edge -> 'source',
            'target', normalize_edge.edge -> 'target')
        else pgaudit_wf.keep_keys(normalize_edge.edge, '{id,source,target,sourceHandle,targetHandle,data}')
    end;
end
$$;

comment on function pgaudit_wf.normalize_edge(jsonb) is
    'The meaningful part of one edge. What is no object is returned as it is. Internal.';


create or replace function pgaudit_wf.normalize_definition(nodes jsonb, edges jsonb)
returns jsonb
language plpgsql
stable
parallel safe
-- The planner takes JSON functions for many rows, and would compile the query for a second to run it for a millisecond.
set jit = off
as $$
declare
    aliases text[] := array(select config_alias.alias from pgaudit_wf.config_alias);
    kept_nodes jsonb;
    kept_edges jsonb;
begin
    select jsonb_agg(pgaudit_wf.normalize_node(node, aliases)) into kept_nodes
    from jsonb_array_elements(pgaudit_wf.graph_array(normalize_definition.nodes, 'nodes')) as node;
    select jsonb_agg(pgaudit_wf.normalize_edge(edge)) into kept_edges
    from jsonb_array_elements(pgaudit_wf.graph_array(normalize_definition.edges, 'edges')) as edge;
    return jsonb_build_object('edges', coalesce(kept_edges, '[]'), 'nodes', coalesce(kept_nodes, '[]'));
end
$$;

comment on function pgaudit_wf.normalize_definition(jsonb, jsonb) is
    'The meaningful part of a workflow, {"edges": […], "nodes": […]}: of a node id, type and data, of an edge id, source, target, '
    'sourceHandle, targetHandle and data, in the order saved, with the legacy keys of data.config read through config_alias. '
    'Null nodes or edges are an empty array; anything else that is no array raises PA203.';

-- sql/core/230_hash_definition.sql

-- The content hash. canonical_definition(nodes, edges) is canonical_json(normalize_definition(nodes, edges)), written out level
-- by level: two statements for the whole graph where the general way builds the normalised document and then needs one for
-- every object in it. That takes a third of the time; the tests hold the two ways together. A save takes the texts of nodes that
-- stayed as they were from 255_canonical_cache.sql.

create or replace function pgaudit_wf.canonical_edges(edges jsonb)
returns text
language plpgsql
immutable
parallel safe
-- The planner takes JSON functions for many rows, and would compile the query for a second to run it for a millisecond.
set jit = off
-- For canonical_json_at, as canonical_json does.
set plan_cache_mode = force_generic_plan
as $$
begin
    return (
        select string_agg(
            case jsonb_typeof(edge)
                -- concat_ws leaves out what is null, which is what an absent key gives; a JSON null is not.
                when 'object' then concat('{', concat_ws(',',
                    '"data":' || pgaudit_wf.canonical_value(edge -> 'data', 4),
                    '"id":' || pgaudit_wf.canonical_value(edge -> 'id', 4),
                    '"source":' || pgaudit_wf.canonical_value(edge -> 'source', 4),
                    '"sourceHandle":' || pgaudit_wf.canonical_value(edge -> 'sourceHandle', 4),
                    '"target":' || pgaudit_wf.canonical_value(edge -> 'target', 4),
                    '"targetHandle":' || pgaudit_wf.canonical_value(edge -> 'targetHandle', 4)), '}')
                else pgaudit_wf.canonical_json_at(edge, 3)
            end, ',')
        from jsonb_array_elements(canonical_edges.edges) as edge);
end
$$;

comment on function pgaudit_wf.canonical_edges(jsonb) is
    'The normalised edges as they stand between the brackets of the text that is hashed; null for none. Unchecked: '
    'canonical_checked() must see the whole text. Internal.';


create or replace function pgaudit_wf.canonical_nodes(nodes jsonb[], aliases text[])
returns text[]
language plpgsql
stable
parallel safe
-- The planner takes JSON functions for many rows, and would compile the query for a second to run it for a millisecond.
set jit = off
-- Or it would see a cheaper plan for an array of one node, and make it anew at each save; and for canonical_json_at.
set plan_cache_mode = force_generic_plan
as $$
begin
    return array(
        select case jsonb_typeof(node)
            when 'object' then concat('{', concat_ws(',',
                '"data":' || case jsonb_typeof(node -> 'data')
                    when 'object' then (
                        select '{' || coalesce(string_agg(
                            concat_ws(':', to_json(member.key), case
                                when member.key <> 'config' or jsonb_typeof(member.value) <> 'object'
                                then pgaudit_wf.canonical_value(member.value, 5)
                                when member.value ?| canonical_nodes.aliases
                                then pgaudit_wf.canonical_json_at(pgaudit_wf.normalize_config(member.value), 5)
                                else (
                                    select '{' || coalesce(string_agg(
                                        concat_ws(':', to_json(setting.key), pgaudit_wf.canonical_value(setting.value, 6)),
                                        ',' order by pgaudit_wf.utf16_order(setting.key) collate "C"), '')
                                        || '}'
                                    from jsonb_each(member.value) as setting)
                            end),
                            ',' order by pgaudit_wf.utf16_order(member.key) collate "C"), '')
                            || '}'
                        from jsonb_each(node -> 'data') as member)
                    else pgaudit_wf.canonical_value(node -> 'data', 4)
                end,
                '"id":' || pgaudit_wf.canonical_value(node -> 'id', 4),
                '"type":' || pgaudit_wf.canonical_value(node -> 'type', 4)), '}')
            else pgaudit_wf.canonical_json_at(node, 3)
        end
        from unnest(canonical_nodes.nodes) as node);
end
$$;

comment on function pgaudit_wf.canonical_nodes(jsonb[], text[]) is
    'Each node, normalised, as it stands in the text that is hashed. aliases is every alias of config_alias, read once by the '
    'caller. Unchecked: canonical_checked() must see the whole text. Internal.';


create or replace function pgaudit_wf.join_definition(nodes text[], edges text)
returns text
language sql
stable
parallel safe
return pgaudit_wf.canonical_checked(
    concat('{"edges":[', join_definition.edges, '],"nodes":[', array_to_string(join_definition.nodes, ','), ']}'));

comment on function pgaudit_wf.join_definition(text[], text) is
    'The text that is hashed, made of what canonical_nodes() and canonical_edges() return. Internal.';


create or replace function pgaudit_wf.canonical_definition(nodes jsonb, edges jsonb)
returns text
language plpgsql
stable
parallel safe
as $$
begin
    return pgaudit_wf.join_definition(
        pgaudit_wf.canonical_nodes(
            array(select jsonb_array_elements(pgaudit_wf.graph_array(canonical_definition.nodes, 'nodes'))),
            array(select config_alias.alias from pgaudit_wf.config_alias)),
        pgaudit_wf.canonical_edges(pgaudit_wf.graph_array(canonical_definition.edges, 'edges')));
end
$$;

comment on function pgaudit_wf.canonical_definition(jsonb, jsonb) is
    'The text that is hashed: the RFC 8785 form of normalize_definition(nodes, edges), made in one go.';


create or replace function pgaudit_wf.content_hash(canonical text)
returns text
language sql
stable
strict
parallel safe
return encode(sha256(convert_to(content_hash.canonical, 'UTF8')), 'hex');

comment on function pgaudit_wf.content_hash(text) is 'Lower-case hex SHA-256 of the UTF-8 bytes of a canonical text.';


create or replace function pgaudit_wf.hash_definition(nodes jsonb, edges jsonb)
returns text
language sql
stable
parallel safe
return pgaudit_wf.content_hash(pgaudit_wf.canonical_definition(hash_definition.nodes, hash_definition.edges));

comment on function pgaudit_wf.hash_definition(jsonb, jsonb) is
    'The content hash of a workflow: lower-case hex SHA-256 of the RFC 8785 form of normalize_definition(nodes, edges). The same '
    'definition gives the same hash in every version, run and language.';


create or replace function pgaudit_wf.same_node(before jsonb, after jsonb)
returns boolean
language sql
immutable
parallel safe
return not record_image_ne(row(same_node.before), row(same_node.after))
    or (coalesce(jsonb_typeof(same_node.before) = 'object' and jsonb_typeof(same_node.after) = 'object', false)
        and same_node.before -> 'data' is not distinct from same_node.after -> 'data'
        and same_node.before -> 'id' is not distinct from same_node.after -> 'id'
        and same_node.before -> 'type' is not distinct from same_node.after -> 'type');

comment on function pgaudit_wf.same_node(jsonb, jsonb) is
    'Whether two nodes are the same as they stand, but for the canvas; false for two that are the same only by config_alias. '
    'Bytes first: most are the same, and comparing JSON takes several times as long to find that out. Internal.';


create or replace function pgaudit_wf.same_definition(
    old_nodes jsonb, old_edges jsonb, new_nodes jsonb, new_edges jsonb)
returns boolean
language plpgsql
stable
parallel safe
as $$
declare
    aliases text[];
begin
    -- What was malformed has no definition that the new one could be the same as, and must not keep it from being mended.
    if jsonb_typeof(same_definition.old_nodes) not in ('array', 'null') or jsonb_typeof(same_definition.old_edges) not in ('array', 'null') then
        return false;
    end if;
    old_nodes := pgaudit_wf.graph_array(same_definition.old_nodes, 'nodes');
    old_edges := pgaudit_wf.graph_array(same_definition.old_edges, 'edges');
    new_nodes := pgaudit_wf.graph_array(same_definition.new_nodes, 'nodes');
    new_edges := pgaudit_wf.graph_array(same_definition.new_edges, 'edges');
    -- Pairs by position, their bytes first.
    if record_image_ne(row(old_edges), row(new_edges)) and exists (
        select from rows from (jsonb_array_elements(old_edges), jsonb_array_elements(new_edges)) as pair (old, new)
        where record_image_ne(row(pair.old), row(pair.new))
            and pgaudit_wf.normalize_edge(pair.old) is distinct from pgaudit_wf.normalize_edge(pair.new))
    then
        return false;
    end if;
    if jsonb_array_length(old_nodes) <> jsonb_array_length(new_nodes) then
        return false;
    end if;
    for place in 0 .. jsonb_array_length(new_nodes) - 1 loop
        if not pgaudit_wf.same_node(old_nodes -> place, new_nodes -> place) then
            if aliases is null then
                aliases := array(select config_alias.alias from pgaudit_wf.config_alias);
            end if;
            if pgaudit_wf.normalize_node(old_nodes -> place, aliases)
                is distinct from pgaudit_wf.normalize_node(new_nodes -> place, aliases)
            then
                return false;
            end if;
        end if;
    end loop;
    return true;
end
$$;

comment on function pgaudit_wf.same_definition(jsonb, jsonb, jsonb, jsonb) is
    'Whether two states of a workflow have the same normalised definition, that is, whether nothing but the canvas changed. '
    'Much cheaper than comparing two hashes.';

-- sql/core/240_version_diff.sql

-- What people read between two versions: which nodes and connections came, went and changed, and how, in words instead of
-- JSON paths. A node that is equal on both sides costs one comparison; only a changed one is looked into.

create or replace function pgaudit_wf.try_jsonb(value text)
returns jsonb
language plpgsql
immutable
strict
-- Not parallel safe: the exception block is a subtransaction.
as $$
begin
    return try_jsonb.value::jsonb;
exception
    when invalid_text_representation or untranslatable_character or statement_too_complex then
        return null;
end
$$;

comment on function pgaudit_wf.try_jsonb(text) is 'The text as JSON, or null if it is none. Internal.';


create or replace function pgaudit_wf.readable_text(value text)
returns text
language sql
immutable
parallel safe
return case
    when coalesce(readable_text.value, '') = '' then 'empty'
    when strpos(readable_text.value, '{{@') = 0 then readable_text.value
    else regexp_replace(readable_text.value, '\{\{@[^:}]+:([^}]+)\}\}', '{{\1}}', 'g')
end;

comment on function pgaudit_wf.readable_text(text) is
    'A configuration text for people: template references {{@nodeId:Display.field}} read {{Display.field}}, nothing reads '
    '"empty".';


create or replace function pgaudit_wf.node_type(node jsonb)
returns text
language sql
immutable
parallel safe
return coalesce(
    nullif(node_type.node -> 'data' ->> 'type', ''), nullif(node_type.node ->> 'type', ''), 'node');

comment on function pgaudit_wf.node_type(jsonb) is 'A node''s category: data.type, else its type, else "node".';


create or replace function pgaudit_wf.node_label(node jsonb)
returns text
language sql
immutable
parallel safe
return coalesce(
    nullif(btrim(node_label.node -> 'data' ->> 'label'), ''),
    nullif(node_label.node -> 'data' -> 'config' ->> 'actionType', ''),
    nullif(node_label.node -> 'data' -> 'config' ->> 'triggerType', ''),
    upper(left(pgaudit_wf.node_type(node_label.node), 1)) || substr(pgaudit_wf.node_type(node_label.node), 2));

comment on function pgaudit_wf.node_label(jsonb) is
    'What people call a node: its label, else its action or trigger type, else its category with a capital.';


-- PL/pgSQL for what is called with more than a variable: such a SQL function is not inlined, and before PostgreSQL 18 planned
-- anew in each transaction, which takes longer than all the rest of a small diff.

create or replace function pgaudit_wf.node_ref(node jsonb)
returns jsonb
language plpgsql
immutable
parallel safe
as $$
begin
    return jsonb_build_object(
        'id', node_ref.node ->> 'id',
        'label', pgaudit_wf.node_label(node_ref.node),
        'node_type', pgaudit_wf.node_type(node_ref.node));
end
$$;

comment on function pgaudit_wf.node_ref(jsonb) is 'A node as a version diff names it: {id, label, node_type}.';


create or replace function pgaudit_wf.changed_node_ref(node jsonb, deltas jsonb)
returns jsonb
language plpgsql
immutable
parallel safe
as $$
begin
    return pgaudit_wf.node_ref(changed_node_ref.node) || jsonb_build_object(
        'action_type', changed_node_ref.node -> 'data' -> 'config' ->> 'actionType',
        'deltas', changed_node_ref.deltas);
end
$$;

comment on function pgaudit_wf.changed_node_ref(jsonb, jsonb) is
    'A changed node as a version diff names it: {id, label, node_type, action_type, deltas}. Internal.';


create or replace function pgaudit_wf.abi_type(input jsonb)
returns text
language plpgsql
immutable
strict
parallel safe
as $$
begin
    if abi_type.input ->> 'type' like 'tuple%' and jsonb_typeof(abi_type.input -> 'components') = 'array' then
        return '(' || coalesce((
                select string_agg(pgaudit_wf.abi_type(component), ',')
                from jsonb_array_elements(abi_type.input -> 'components') as component), '')
            || ')' || substr(abi_type.input ->> 'type', 6);
    end if;
    return coalesce(abi_type.input ->> 'type', '');
end
$$;

comment on function pgaudit_wf.abi_type(jsonb) is
    'The type of an ABI parameter as it stands in a function signature: a tuple is its components. Internal.';


create or replace function pgaudit_wf.argument_text(config jsonb, value jsonb)
returns text
language plpgsql
immutable
as $$
declare
    arguments jsonb := case jsonb_typeof(argument_text.value)
        when 'string' then pgaudit_wf.try_jsonb(argument_text.value #>> '{}') else argument_text.value end;
    abi jsonb := case jsonb_typeof(argument_text.config -> 'abi')
        when 'string' then pgaudit_wf.try_jsonb(argument_text.config ->> 'abi') else argument_text.config -> 'abi' end;
    inputs jsonb;
    named text;
begin
    if jsonb_typeof(arguments) is distinct from 'array' then
        return null;
    end if;
    if jsonb_typeof(abi) = 'array' then
        -- An overloaded function is stored by its signature; a name alone is settled by the number of arguments.
        select entry -> 'inputs' into inputs
        from jsonb_array_elements(abi) with ordinality as item (entry, position)
        where entry ->> 'name' = split_part(argument_text.config ->> 'abiFunction', '(', 1)
            and coalesce(entry ->> 'type', 'function') = 'function'
            and jsonb_typeof(entry -> 'inputs') = 'array'
        order by
            (entry ->> 'name') || '(' || coalesce((
                select string_agg(pgaudit_wf.abi_type(input), ',' order by place)
                from jsonb_array_elements(entry -> 'inputs') with ordinality as parameter (input, place)), '') || ')'
                = argument_text.config ->> 'abiFunction' desc,
            jsonb_array_length(entry -> 'inputs') = jsonb_array_length(arguments) desc,
            position
        limit 1;
    end if;
    select E'{\n' || string_agg(
            '  ' || to_json(case when occurrence = 1 then name else 'arg' || (place - 1) end)::text || ': ' || argument::text,
            E',\n' order by place) || E'\n}'
        into named
        from (
            select argument, place, name, row_number() over (partition by name order by place) as occurrence
            from (
                select argument, place,
                    coalesce(nullif(btrim(inputs -> (place::int - 1) ->> 'name'), ''), 'arg' || (place - 1)) as name
                from jsonb_array_elements(arguments) with ordinality as given (argument, place)
                -- Editors pad the array with empty strings past the function's own parameters.
                where inputs is null or place <= jsonb_array_length(inputs) or argument <> '""'
            ) as labelled
        ) as counted;
    return pgaudit_wf.readable_text(coalesce(named, arguments::text));
end
$$;

comment on function pgaudit_wf.argument_text(jsonb, jsonb) is
    'Contract arguments (a positional array, or its JSON text) for people: a JSON object by the parameter names of the '
    'function that abiFunction names in the config''s own abi, argN where there is no name. Null if value is no array.';


create or replace function pgaudit_wf.condition_text(condition_group jsonb, depth int default 0)
returns text
language plpgsql
immutable
strict
parallel safe
as $$
begin
    return (
        select string_agg(
            repeat('  ', condition_text.depth) || place || '. '
            || case when jsonb_typeof(rule -> 'rules') = 'array'
                then concat_ws(E'\n', 'group', pgaudit_wf.condition_text(rule, condition_text.depth + 1))
                else concat_ws(' ',
                    coalesce(nullif(btrim(coalesce(rule ->> 'leftOperand', rule ->> 'field')), ''), '""'),
                    rule ->> 'operator',
                    nullif(btrim(coalesce(rule ->> 'rightOperand', rule ->> 'value')), ''))
            end,
            E'\n' || repeat('  ', condition_text.depth)
            || upper(coalesce(nullif(condition_text.condition_group ->> 'logic', ''), 'and')) || E'\n'
            order by place)
        from jsonb_array_elements(condition_text.condition_group -> 'rules') with ordinality as listed (rule, place));
end
$$;

comment on function pgaudit_wf.condition_text(jsonb, int) is
    'A condition group {logic, rules} as a numbered list of its rules with AND or OR between them, groups in groups indented.';


create or replace function pgaudit_wf.config_text(config jsonb, key text, value jsonb)
returns text
language plpgsql
immutable
as $$
declare
    tree jsonb := config_text.value;
    named text;
begin
    if config_text.key = 'functionArgs' then
        named := pgaudit_wf.argument_text(config_text.config, config_text.value);
    elsif jsonb_typeof(tree) = 'object' or tree #>> '{}' like '{%"rules"%' then
        if jsonb_typeof(tree) = 'string' then
            tree := pgaudit_wf.try_jsonb(tree #>> '{}');
        end if;
        if jsonb_typeof(tree -> 'group' -> 'rules') = 'array' then
            tree := tree -> 'group';
        end if;
        if jsonb_typeof(tree -> 'rules') = 'array' and (tree ? 'logic' or config_text.key = 'conditionConfig') then
            named := pgaudit_wf.readable_text(pgaudit_wf.condition_text(tree));
        end if;
    end if;
    -- #>> '{}' is the text of a string and of anything else its JSON; of a JSON null it is null.
    return coalesce(named, pgaudit_wf.readable_text(config_text.value #>> '{}'));
end
$$;

comment on function pgaudit_wf.config_text(jsonb, text, jsonb) is
    'One configuration value for people, in full: contract arguments by name, a condition tree as a rule list, template '
    'references without node ids, "empty" for nothing. config is the whole configuration the value stands in.';


create or replace function pgaudit_wf.config_delta(
    key text, old_config jsonb, new_config jsonb, before jsonb, after jsonb)
returns jsonb
language plpgsql
immutable
as $$
begin
    return jsonb_build_object(
        'key', config_delta.key,
        'before', pgaudit_wf.config_text(config_delta.old_config, config_delta.key, config_delta.before),
        'after', pgaudit_wf.config_text(config_delta.new_config, config_delta.key, config_delta.after));
end
$$;

comment on function pgaudit_wf.config_delta(text, jsonb, jsonb, jsonb, jsonb) is
    'A changed configuration value as {key, before, after}, for people. Internal.';


create or replace function pgaudit_wf.text_delta(field text, before text, after text)
returns jsonb
language plpgsql
immutable
parallel safe
as $$
begin
    if coalesce(text_delta.before, '') = coalesce(text_delta.after, '') then
        return null;
    end if;
    return jsonb_build_object(
        'field', text_delta.field,
        'before', coalesce(nullif(text_delta.before, ''), 'empty'),
        'after', coalesce(nullif(text_delta.after, ''), 'empty'));
end
$$;

comment on function pgaudit_wf.text_delta(text, text, text) is
    'A changed text as {field, before, after}, null if it did not change. Internal.';


create or replace function pgaudit_wf.different_keys(before jsonb, after jsonb)
returns text[]
language plpgsql
immutable
parallel safe
as $$
begin
    return array(
        select key
        from (
            select member.key
            from jsonb_each(different_keys.after) as member
            -- The bytes first, which tell most of what is the same apart in a fraction of the time.
            where record_image_ne(row(different_keys.before -> member.key), row(member.value))
                and different_keys.before -> member.key is distinct from member.value
            union all
            select gone from jsonb_object_keys(different_keys.before) as gone where not different_keys.after ? gone
        ) as different
        order by key collate "C");
end
$$;

comment on function pgaudit_wf.different_keys(jsonb, jsonb) is
    'The keys that two JSON objects do not share with the same value, in byte order. Internal.';


create or replace function pgaudit_wf.node_delta(before jsonb, after jsonb)
returns jsonb
language plpgsql
stable
as $$
declare
    old_data jsonb := case jsonb_typeof(node_delta.before -> 'data')
        when 'object' then node_delta.before -> 'data' else '{}' end;
    new_data jsonb := case jsonb_typeof(node_delta.after -> 'data')
        when 'object' then node_delta.after -> 'data' else '{}' end;
    old_config jsonb := case jsonb_typeof(old_data -> 'config') when 'object' then old_data -> 'config' else '{}' end;
    new_config jsonb := case jsonb_typeof(new_data -> 'config') when 'object' then new_data -> 'config' else '{}' end;
    old_rest jsonb := old_data - '{label,description,type,enabled}'::text[];
    new_rest jsonb := new_data - '{label,description,type,enabled}'::text[];
    delta jsonb := '[]';
    aliases text[];
    key text;
    member text;
    changes jsonb[] := '{}';
begin
    delta := delta || coalesce(pgaudit_wf.text_delta('name', old_data ->> 'label', new_data ->> 'label'), '[]');
    delta := delta || coalesce(
        pgaudit_wf.text_delta('description', old_data ->> 'description', new_data ->> 'description'), '[]');
    delta := delta || coalesce(
        pgaudit_wf.text_delta('type', pgaudit_wf.node_type(node_delta.before), pgaudit_wf.node_type(node_delta.after)),
        pgaudit_wf.text_delta('type', node_delta.before ->> 'type', node_delta.after ->> 'type'), '[]');
    delta := delta || coalesce(pgaudit_wf.text_delta('enabled',
        coalesce(old_data ->> 'enabled', 'true'), coalesce(new_data ->> 'enabled', 'true')), '[]');

    if old_config <> new_config then
        aliases := array(select config_alias.alias from pgaudit_wf.config_alias);
        if old_config ?| aliases then
            old_config := pgaudit_wf.normalize_config(old_config);
        end if;
        if new_config ?| aliases then
            new_config := pgaudit_wf.normalize_config(new_config);
        end if;
        foreach key in array pgaudit_wf.different_keys(old_config, new_config) loop
            changes := array_append(changes, pgaudit_wf.config_delta(
                key, old_config, new_config, old_config -> key, new_config -> key));
        end loop;
    end if;

    -- What some editors keep beside, or instead of, config.
    if coalesce(jsonb_typeof(old_data -> 'config'), 'object') = 'object'
        and coalesce(jsonb_typeof(new_data -> 'config'), 'object') = 'object'
    then
        old_rest := old_rest - 'config';
        new_rest := new_rest - 'config';
    end if;
    if old_rest <> new_rest then
        foreach key in array pgaudit_wf.different_keys(old_rest, new_rest) loop
            if jsonb_typeof(old_rest -> key) = 'object' and jsonb_typeof(new_rest -> key) = 'object' then
                -- By its members, so that one field of twenty does not read as twenty.
                foreach member in array pgaudit_wf.different_keys(old_rest -> key, new_rest -> key) loop
                    changes := array_append(changes, pgaudit_wf.config_delta(
                        key || '.' || member, old_config, new_config, old_rest -> key -> member, new_rest -> key -> member));
                end loop;
            else
                changes := array_append(changes, pgaudit_wf.config_delta(
                    key, old_config, new_config, old_rest -> key, new_rest -> key));
            end if;
        end loop;
    end if;
    if node_delta.before -> 'data' is distinct from node_delta.after -> 'data'
        and (jsonb_typeof(node_delta.before -> 'data') is distinct from jsonb_typeof(node_delta.after -> 'data')
            or jsonb_typeof(node_delta.after -> 'data') <> 'object')
    then
        changes := array_append(changes, pgaudit_wf.config_delta(
            'data', old_config, new_config, node_delta.before -> 'data', node_delta.after -> 'data'));
    end if;
    if changes <> '{}' then
        delta := delta || jsonb_build_object('field', 'configuration', 'changes', to_jsonb(changes));
    end if;
    return delta;
end
$$;

comment on function pgaudit_wf.node_delta(jsonb, jsonb) is
    'What changed in one node: a list of {field, before, after} for name, description, type and enabled, and {field: '
    '"configuration", changes: [{key, before, after}]}. Empty if nothing readable did.';


create or replace function pgaudit_wf.edge_key(edge jsonb)
returns text
language sql
immutable
parallel safe
-- A unit separator between the parts, so that ids may hold any usual character; a null handle is an absent one.
return concat(edge_key.edge ->> 'source', chr(31), edge_key.edge ->> 'target', chr(31),
    edge_key.edge ->> 'sourceHandle', chr(31), edge_key.edge ->> 'targetHandle');

comment on function pgaudit_wf.edge_key(jsonb) is
    'What makes two edges the same connection: source, target, sourceHandle and targetHandle. Internal.';


create or replace function pgaudit_wf.connection_ref(edge jsonb, labels jsonb)
returns jsonb
language plpgsql
immutable
parallel safe
as $$
begin
    return jsonb_strip_nulls(jsonb_build_object(
        'from', coalesce(connection_ref.labels ->> (connection_ref.edge ->> 'source'), connection_ref.edge ->> 'source', 'empty'),
        'to', coalesce(connection_ref.labels ->> (connection_ref.edge ->> 'target'), connection_ref.edge ->> 'target', 'empty'),
        'source_handle', nullif(connection_ref.edge ->> 'sourceHandle', ''),
        'target_handle', nullif(connection_ref.edge ->> 'targetHandle', '')))
        || jsonb_build_object(
            'from_id', connection_ref.edge ->> 'source',
            'to_id', connection_ref.edge ->> 'target');
end
$$;

comment on function pgaudit_wf.connection_ref(jsonb, jsonb) is
    'A connection as a version diff names it: {from, to, from_id, to_id} and source_handle, target_handle where set. labels maps '
    'node ids to labels.';


create or replace function pgaudit_wf.snapshot_diff(
    before jsonb, after jsonb, before_nodes jsonb, before_edges jsonb, after_nodes jsonb, after_edges jsonb)
returns jsonb
language plpgsql
stable
-- The planner takes JSON functions for many rows, and would compile the query for a second to run it for a millisecond.
set jit = off
as $$
declare
    old_nodes constant jsonb := pgaudit_wf.graph_array(snapshot_diff.before_nodes, 'nodes');
    new_nodes constant jsonb := pgaudit_wf.graph_array(snapshot_diff.after_nodes, 'nodes');
    old_edges constant jsonb := pgaudit_wf.graph_array(snapshot_diff.before_edges, 'edges');
    new_edges constant jsonb := pgaudit_wf.graph_array(snapshot_diff.after_edges, 'edges');
    settings jsonb := '[]';
    old_node jsonb;
    new_node jsonb;
    -- Arrays of SQL, since those grow in place and a jsonb is copied at each step.
    old_different jsonb[] := '{}';
    new_different jsonb[] := '{}';
    refs jsonb[] := '{}';
    in_place boolean := true;
    delta jsonb;
    nodes_added jsonb;
    nodes_removed jsonb;
    nodes_changed jsonb;
    edges_added jsonb;
    edges_removed jsonb;
    labels jsonb;
    field text;
    has_changes boolean;
begin
    foreach field in array '{name,description,visibility,enabled}'::text[] loop
        if snapshot_diff.before ->> field is distinct from snapshot_diff.after ->> field then
            settings := settings || coalesce(pgaudit_wf.text_delta(
                field, snapshot_diff.before ->> field, snapshot_diff.after ->> field), '[]');
        end if;
    end loop;

    -- Most saves leave the nodes in their places and most nodes as they were: those cost one comparison.
    for place in 0 .. greatest(jsonb_array_length(old_nodes), jsonb_array_length(new_nodes)) - 1 loop
        if not pgaudit_wf.same_node(old_nodes -> place, new_nodes -> place) then
            old_node := old_nodes -> place;
            new_node := new_nodes -> place;
            in_place := in_place and coalesce(old_node ->> 'id' = new_node ->> 'id', false);
            if old_node is not null then
                old_different := array_append(old_different, old_node);
            end if;
            if new_node is not null then
                new_different := array_append(new_different, new_node);
            end if;
        end if;
    end loop;
    if in_place then
        for place in 1..cardinality(new_different) loop
            delta := pgaudit_wf.node_delta(old_different[place], new_different[place]);
            if delta <> '[]' then
                refs := array_append(refs, pgaudit_wf.changed_node_ref(new_different[place], delta));
            end if;
        end loop;
        nodes_changed := nullif(to_jsonb(refs), '[]');
    else
        -- Of several nodes with one id (or none) the first is matched with the first, the second with the second.
        with old as (
            select node, place, coalesce('=' || (node ->> 'id'), '') collate "C" as id,
                row_number() over (partition by coalesce('=' || (node ->> 'id'), '') collate "C" order by place) as occurrence
            from unnest(old_different) with ordinality as listed (node, place)
        ), new as (
            select node, place, coalesce('=' || (node ->> 'id'), '') collate "C" as id,
                row_number() over (partition by coalesce('=' || (node ->> 'id'), '') collate "C" order by place) as occurrence
            from unnest(new_different) with ordinality as listed (node, place)
        ), pair as (
            select old.node as node_before, old.place as place_before, new.node as node_after, new.place as place_after
            from old full join new on old.id = new.id and old.occurrence = new.occurrence
            where old.node is null or new.node is null
                or old.node <> new.node and (
                    old.node -> 'data' is distinct from new.node -> 'data'
                    or old.node -> 'type' is distinct from new.node -> 'type')
        ), compared as (
            select pair.*, case when node_before is not null and node_after is not null
                then pgaudit_wf.node_delta(node_before, node_after) end as changes
            from pair
        )
        select
            jsonb_agg(pgaudit_wf.node_ref(node_after) order by place_after) filter (where node_before is null),
            jsonb_agg(pgaudit_wf.node_ref(node_before) order by place_before) filter (where node_after is null),
            jsonb_agg(pgaudit_wf.changed_node_ref(node_after, changes) order by place_after) filter (where changes <> '[]')
            into nodes_added, nodes_removed, nodes_changed
            from compared;
    end if;

    if record_image_ne(row(old_edges), row(new_edges)) then
        -- Two of the same in one place are a pair already; which of several with one key they are makes no difference.
        with pair as materialized (
            select old, new, place
            from rows from (jsonb_array_elements(old_edges), jsonb_array_elements(new_edges)) with ordinality as listed (old, new, place)
            where record_image_ne(row(old), row(new))
        ), old as (
            select old as edge, place, pgaudit_wf.edge_key(old) collate "C" as key,
                row_number() over (partition by pgaudit_wf.edge_key(old) collate "C" order by place) as occurrence
            from pair where old is not null
        ), new as (
            select new as edge, place, pgaudit_wf.edge_key(new) collate "C" as key,
                row_number() over (partition by pgaudit_wf.edge_key(new) collate "C" order by place) as occurrence
            from pair where new is not null
        )
        select
            jsonb_agg(new.edge order by new.place) filter (where old.edge is null),
            jsonb_agg(old.edge order by old.place) filter (where new.edge is null)
            into edges_added, edges_removed
            from old full join new on old.key = new.key and old.occurrence = new.occurrence
            where old.edge is null or new.edge is null;

        if edges_added is not null or edges_removed is not null then
            -- The newer label where both know the node; of repeated keys jsonb keeps the last.
            select coalesce(jsonb_object_agg(node ->> 'id', pgaudit_wf.node_label(node) order by age, place desc), '{}')
                into labels
                from (
                    select 1 as age, node, place from jsonb_array_elements(old_nodes) with ordinality as listed (node, place)
                    union all
                    select 2, node, place from jsonb_array_elements(new_nodes) with ordinality as listed (node, place)
                ) as known
                where node ->> 'id' is not null;
            select jsonb_agg(pgaudit_wf.connection_ref(edge, labels) order by place) into edges_added
                from jsonb_array_elements(edges_added) with ordinality as listed (edge, place);
            select jsonb_agg(pgaudit_wf.connection_ref(edge, labels) order by place) into edges_removed
                from jsonb_array_elements(edges_removed) with ordinality as listed (edge, place);
        end if;
    end if;

    -- Another order, another edge id, null for absent: nothing to list, and yet another definition with another hash.
    has_changes := settings <> '[]' or nodes_added is not null or nodes_removed is not null or nodes_changed is not null
        or edges_added is not null or edges_removed is not null
        or not pgaudit_wf.same_definition(old_nodes, old_edges, new_nodes, new_edges);
    return jsonb_build_object(
        'settings', settings,
        'nodes_added', coalesce(nodes_added, '[]'),
        'nodes_removed', coalesce(nodes_removed, '[]'),
        'nodes_changed', coalesce(nodes_changed, '[]'),
        'connections_added', coalesce(edges_added, '[]'),
        'connections_removed', coalesce(edges_removed, '[]'),
        'has_changes', has_changes);
end
$$;

comment on function pgaudit_wf.snapshot_diff(jsonb, jsonb, jsonb, jsonb, jsonb, jsonb) is
    'version_diff() for callers that have nodes and edges at hand: taking them out of a snapshot copies them. Internal.';


create or replace function pgaudit_wf.version_diff(before jsonb, after jsonb)
returns jsonb
language sql
stable
return pgaudit_wf.snapshot_diff(
    version_diff.before, version_diff.after,
    version_diff.before -> 'nodes', version_diff.before -> 'edges',
    version_diff.after -> 'nodes', version_diff.after -> 'edges');

comment on function pgaudit_wf.version_diff(jsonb, jsonb) is
    'What changed between two snapshots {name, description, visibility, enabled, nodes, edges}, for people: {settings, '
    'nodes_added, nodes_removed, nodes_changed, connections_added, connections_removed, has_changes}. Either may be null: '
    'nothing was there. Nodes are matched by id, connections by source, target and handles; canvas state is no change. '
    'has_changes is also true where only something unlisted differs (order, an edge''s id or data) that changes the hash.';


create or replace function pgaudit_wf.count_text(added int, removed int, changed int, noun text)
returns text
language plpgsql
immutable
parallel safe
-- PL/pgSQL keeps the plan, which a timeline of many versions asks for; a SQL function does so only from PostgreSQL 18 on.
as $$
begin
    return (
        select string_agg(
            amount || case when first then ' ' || count_text.noun || case when amount = 1 then '' else 's' end else '' end || ' ' || verb,
            ', ' order by place)
        from (
            select amount, verb, place, row_number() over (order by place) = 1 as first
            from (values
                (count_text.added, 'added', 1),
                (count_text.removed, 'removed', 2),
                (count_text.changed, 'changed', 3)) as tally (amount, verb, place)
            where amount > 0
        ) as counted);
end
$$;

comment on function pgaudit_wf.count_text(int, int, int, text) is '"2 nodes added, 1 changed", null for none. Internal.';


create or replace function pgaudit_wf.version_summary(diff jsonb)
returns text
language plpgsql
immutable
strict
parallel safe
as $$
begin
    return coalesce(
        nullif(concat_ws('; ',
            nullif(concat_ws(', ',
                pgaudit_wf.count_text(
                    jsonb_array_length(version_summary.diff -> 'nodes_added'),
                    jsonb_array_length(version_summary.diff -> 'nodes_removed'),
                    jsonb_array_length(version_summary.diff -> 'nodes_changed'), 'node'),
                pgaudit_wf.count_text(
                    jsonb_array_length(version_summary.diff -> 'connections_added'),
                    jsonb_array_length(version_summary.diff -> 'connections_removed'), 0, 'connection')), ''),
            (
                select string_agg(
                    case setting ->> 'field'
                        when 'name' then case when setting ->> 'before' = 'empty'
                            then format('named ''%s''', setting ->> 'after')
                            else format('renamed ''%s'' to ''%s''', setting ->> 'before', setting ->> 'after') end
                        when 'description' then 'description changed'
                        when 'enabled' then case when setting ->> 'after' = 'true' then 'enabled' else 'disabled' end
                        else format('%s changed from %s to %s',
                            setting ->> 'field', setting ->> 'before', setting ->> 'after')
                    end, '; ' order by place)
                from jsonb_array_elements(version_summary.diff -> 'settings') with ordinality as listed (setting, place)
            )), ''),
        case when (version_summary.diff -> 'has_changes')::boolean
            then 'order or connection details changed' else 'no changes' end);
end
$$;

comment on function pgaudit_wf.version_summary(jsonb) is
    'A version diff in one line: "2 nodes added, 1 changed, 1 connection removed; renamed ''A'' to ''B''".';

-- sql/core/250_validate_definition.sql

-- Problems of a definition, for an editor to show and for a guard to refuse enabling, listing or running with. A draft is
-- saved with any number of them.

create table pgaudit_wf.action_schema (
    action_type text primary key,
    required_fields text[] not null check (array_position(required_fields, null) is null),
    description text
);

comment on table pgaudit_wf.action_schema is
    'Which configuration fields each action or trigger type needs before its workflow may be enabled, listed or run. A type '
    'that is not here needs none. The rows that come with pgaudit_wf are examples: change them to what your actions need.';
comment on column pgaudit_wf.action_schema.action_type is
    'The value of data.config.actionType, or of data.config.triggerType for a trigger.';
comment on column pgaudit_wf.action_schema.required_fields is
    'Keys of data.config, by their canonical names (see config_alias), that must be there and not empty.';
comment on column pgaudit_wf.action_schema.description is 'What the action does, for whoever maintains this table.';

insert into pgaudit_wf.action_schema (action_type, required_fields, description) values
    ('web3/read-contract', '{network,contractAddress,abi,abiFunction}', 'Calls a view function of a contract.'),
    ('web3/write-contract', '{network,contractAddress,abi,abiFunction}', 'Sends a transaction to a contract.'),
    ('HTTP Request', '{endpoint,httpMethod}', 'Calls a web API.'),
    ('Schedule', '{scheduleCron}', 'Starts the workflow by the clock.');


create or replace function pgaudit_wf.validate_definition(nodes jsonb, edges jsonb)
returns table (node_id text, field text, code text, message text)
language plpgsql
stable
parallel safe
rows 10
-- The planner takes JSON functions for many rows, and would compile the query for a second to run it for a millisecond.
set jit = off
as $$
#variable_conflict use_column
declare
    listed_nodes jsonb := case jsonb_typeof(validate_definition.nodes)
        when 'array' then validate_definition.nodes else '[]' end;
    listed_edges jsonb := case jsonb_typeof(validate_definition.edges)
        when 'array' then validate_definition.edges else '[]' end;
begin
    return query
    select null::text, given.name, 'not_an_array', format('%s is a JSON %s, not an array', given.name, jsonb_typeof(given.value))
    from (values ('nodes', validate_definition.nodes), ('edges', validate_definition.edges)) as given (name, value)
    where jsonb_typeof(given.value) not in ('array', 'null');

    return query
    with item as (
        select node, place, node ->> 'id' as id
        from jsonb_array_elements(listed_nodes) with ordinality as listed (node, place)
    ), problem as (
        select place, 0 as rank, null::text as id, null::text as field, 'not_an_object' as code,
            format('node %s is a JSON %s, not an object', place, jsonb_typeof(node)) as message
        from item where jsonb_typeof(node) <> 'object'
        union all
        select place, 1, null, 'id', 'missing_id', format('node %s (%s) has no id', place, pgaudit_wf.node_label(node))
        from item where jsonb_typeof(node) = 'object' and coalesce(id, '') = ''
        union all
        select min(place), 2, id, 'id', 'duplicate_id', format('%s nodes have the id %s', count(*), id)
        from item where id <> '' group by id having count(*) > 1
        union all
        select item.place, 3, item.id, required.field, 'missing_field',
            format('%s (%s) needs %s', pgaudit_wf.node_label(node), action_schema.action_type, required.field)
        from item
        join pgaudit_wf.action_schema on action_schema.action_type
            = coalesce(node -> 'data' -> 'config' ->> 'actionType', node -> 'data' -> 'config' ->> 'triggerType')
        cross join lateral (
            select pgaudit_wf.normalize_config(node -> 'data' -> 'config') as config offset 0) as normalized
        cross join lateral unnest(action_schema.required_fields) as required (field)
        where btrim(coalesce(normalized.config ->> required.field, '')) in ('', '[]', '{}')
    )
    select problem.id, problem.field, problem.code, problem.message
    from problem order by problem.place, problem.rank, problem.field;

    return query
    with known as (
        select distinct node ->> 'id' as id from jsonb_array_elements(listed_nodes) as node where node ->> 'id' <> ''
    ), item as (
        select edge, place, edge ->> 'id' as id
        from jsonb_array_elements(listed_edges) with ordinality as listed (edge, place)
    ), problem as (
        select place, 0 as rank, null::text as node, null::text as field, 'not_an_object' as code,
            format('edge %s is a JSON %s, not an object', place, jsonb_typeof(edge)) as message
        from item where jsonb_typeof(edge) <> 'object'
        union all
        select min(place), 1, null, 'id', 'duplicate_id', format('%s edges have the id %s', count(*), id)
        from item where id <> '' group by id having count(*) > 1
        union all
        select place, 2, edge ->> ends.name, ends.name, 'dangling_edge',
            case when coalesce(edge ->> ends.name, '') = ''
                then format('edge %s has no %s', coalesce(item.id, place::text), ends.name)
                else format('edge %s has %s %s, which is no node of this workflow',
                    coalesce(item.id, place::text), ends.name, edge ->> ends.name) end
        from item
        cross join (values ('source'), ('target')) as ends (name)
        left join known on known.id = edge ->> ends.name
        where jsonb_typeof(edge) = 'object' and known.id is null
    )
    select problem.node, problem.field, problem.code, problem.message
    from problem order by problem.place, problem.rank, problem.field;
end
$$;

comment on function pgaudit_wf.validate_definition(jsonb, jsonb) is
    'The problems of a workflow, none if it may run: not_an_array, not_an_object, missing_id, duplicate_id, missing_field (by '
    'action_schema, under canonical names, so that legacy spellings are no problem) and dangling_edge (node_id is the id that the '
    'edge names). field is the configuration key, the edge''s end, or id.';

-- sql/core/255_canonical_cache.sql

-- The canonical texts of the nodes of workflows that are being worked on, so that a save pays for the nodes that it changes and not
-- for all others. Nothing depends on these rows: where they are missing, or belong to another version, they are made again.

create unlogged table pgaudit_wf.canonical_cache (
    workflow_id text primary key,
    version integer not null,
    aliases jsonb not null,
    edges text,
    written_at timestamptz not null default now()
) with (fillfactor = 70);
comment on table pgaudit_wf.canonical_cache is
    'For which version of a workflow canonical_cache_node holds the canonical texts. May be emptied at any time, as a crash does; pgaudit-wf maintain lets go of what was not saved for a month.';
comment on column pgaudit_wf.canonical_cache.workflow_id is 'Id of the workflow, as in workflow_history.';
comment on column pgaudit_wf.canonical_cache.version is 'The version whose texts these are.';
comment on column pgaudit_wf.canonical_cache.aliases is 'config_alias at that time, {alias: canonical_name}.';
comment on column pgaudit_wf.canonical_cache.edges is 'canonical_edges() of the version; null for none.';
comment on column pgaudit_wf.canonical_cache.written_at is 'When the version was saved.';

create unlogged table pgaudit_wf.canonical_cache_node (
    workflow_id text,
    place integer,
    node text not null,
    primary key (workflow_id, place)
) with (fillfactor = 70);
comment on table pgaudit_wf.canonical_cache_node is 'Canonical text of each node of the version that canonical_cache names.';
comment on column pgaudit_wf.canonical_cache_node.workflow_id is 'Id of the workflow, as in workflow_history.';
comment on column pgaudit_wf.canonical_cache_node.place is 'Index in the array of nodes, from 0.';
comment on column pgaudit_wf.canonical_cache_node.node is 'The element of canonical_nodes().';

-- Compressing a node of several kilobytes the old way takes longer than all that reading it spares.
do $$
begin
    alter table pgaudit_wf.canonical_cache alter column edges set compression lz4;
    alter table pgaudit_wf.canonical_cache_node alter column node set compression lz4;
exception
    when feature_not_supported or invalid_parameter_value then
        alter table pgaudit_wf.canonical_cache alter column edges set storage external;
        alter table pgaudit_wf.canonical_cache_node alter column node set storage external;
end
$$;

create function pgaudit_wf.hash_next_version(
    workflow_id text, version integer, old_nodes jsonb, old_edges jsonb, new_nodes jsonb, new_edges jsonb) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    aliases text[];
    spelling jsonb;
    cached_version integer;
    cached_spelling jsonb;
    cached_edges text;
    cached_nodes text[];
    usable boolean;
    new_node jsonb;
    origin integer;
    places_by_id jsonb;
    nodes text[];
    edges text;
    moved integer[] := '{}';
    changed integer[] := '{}';
    changed_nodes jsonb[] := '{}';
    changed_texts text[];
begin
    old_nodes := pgaudit_wf.graph_array(hash_next_version.old_nodes, 'nodes');
    new_nodes := pgaudit_wf.graph_array(hash_next_version.new_nodes, 'nodes');
    new_edges := pgaudit_wf.graph_array(hash_next_version.new_edges, 'edges');
    select coalesce(array_agg(a.alias), '{}'), coalesce(jsonb_object_agg(a.alias, a.canonical_name), '{}')
        into aliases, spelling from pgaudit_wf.config_alias as a;
    select c.version, c.aliases, c.edges, array(
            select n.node from pgaudit_wf.canonical_cache_node as n where n.workflow_id = c.workflow_id order by n.place)
        into cached_version, cached_spelling, cached_edges, cached_nodes
        from pgaudit_wf.canonical_cache as c where c.workflow_id = hash_next_version.workflow_id;
    -- The count: rows may be removed at any time, also while we wait for the lock on one of them.
    usable := coalesce(cached_version = hash_next_version.version and cached_spelling = spelling
        and cardinality(cached_nodes) = jsonb_array_length(old_nodes), false);

    if not usable then
        -- As if nothing had been there before.
        old_nodes := '[]';
        old_edges := null;
        cached_nodes := '{}';
    end if;
    nodes := cached_nodes[:jsonb_array_length(new_nodes)];
    for place in 0 .. jsonb_array_length(new_nodes) - 1 loop
        if not pgaudit_wf.same_node(old_nodes -> place, new_nodes -> place) then
            new_node := new_nodes -> place;
            origin := place;
            if old_nodes -> place ->> 'id' is distinct from new_node ->> 'id' then
                -- Another node came or went before it.
                if places_by_id is null then
                    places_by_id := (
                        select coalesce(jsonb_object_agg(node ->> 'id', position - 1), '{}')
                        from jsonb_array_elements(old_nodes) with ordinality as listed (node, position) where node ->> 'id' is not null);
                end if;
                origin := places_by_id ->> (new_node ->> 'id');
            end if;
            if pgaudit_wf.same_node(old_nodes -> origin, new_node) then
                moved := array_append(moved, place);
                nodes[place + 1] := cached_nodes[origin + 1];
            else
                changed := array_append(changed, place);
                changed_nodes := array_append(changed_nodes, new_node);
            end if;
        end if;
    end loop;
    if changed <> '{}' then
        changed_texts := pgaudit_wf.canonical_nodes(changed_nodes, aliases);
        for i in 1 .. cardinality(changed) loop
            nodes[changed[i] + 1] := changed_texts[i];
        end loop;
    end if;
    edges := case when record_image_ne(row(old_edges), row(new_edges))
        then pgaudit_wf.canonical_edges(new_edges) else cached_edges end;

    -- First, as its lock is what keeps prune_canonical_cache() away from the nodes.
    insert into pgaudit_wf.canonical_cache (workflow_id, version, aliases, edges)
    values (hash_next_version.workflow_id, hash_next_version.version + 1, spelling, edges)
    on conflict on constraint canonical_cache_pkey do update
        set version = excluded.version, aliases = excluded.aliases, edges = excluded.edges, written_at = excluded.written_at;
    if changed <> '{}' or moved <> '{}' then
        insert into pgaudit_wf.canonical_cache_node (workflow_id, place, node)
        select hash_next_version.workflow_id, p.place, nodes[p.place + 1] from unnest(changed || moved) as p (place)
        on conflict on constraint canonical_cache_node_pkey do update set node = excluded.node;
    end if;
    if not usable or jsonb_array_length(new_nodes) < cardinality(cached_nodes) then
        delete from pgaudit_wf.canonical_cache_node as n
        where n.workflow_id = hash_next_version.workflow_id and n.place >= jsonb_array_length(new_nodes);
    end if;
    return pgaudit_wf.content_hash(pgaudit_wf.join_definition(nodes, edges));
end
$$;
comment on function pgaudit_wf.hash_next_version(text, integer, jsonb, jsonb, jsonb, jsonb) is
    'hash_definition(new_nodes, new_edges) at the cost of what differs from old_nodes and old_edges, which are those of the newest version: its number is version. The caller holds the lock on the workflow. Internal.';

create function pgaudit_wf.prune_canonical_cache(unused_for interval) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    pruned bigint;
begin
    with unused as (
        delete from pgaudit_wf.canonical_cache as c
        where c.workflow_id in (
            select old.workflow_id from pgaudit_wf.canonical_cache as old
            where old.written_at < now() - prune_canonical_cache.unused_for for update skip locked)
        returning c.workflow_id
    ), gone as (
        delete from pgaudit_wf.canonical_cache_node as n using unused as u where n.workflow_id = u.workflow_id
    )
    select count(*) into pruned from unused;
    return pruned;
end
$$;
comment on function pgaudit_wf.prune_canonical_cache(interval) is
    'Lets go of the canonical texts of workflows without a new version for so long; returns of how many. Their next save makes them again.';

-- sql/core/260_workflow_history.sql

-- The versions of workflows: one row each, append-only, with a hash that anybody can recompute.

-- A domain, and no CHECK on the table: PostgreSQL parses those anew for every INSERT, which takes 10 µs each.
create domain pgaudit_wf.version_source as text
    constraint version_source_known check (value in ('create', 'update', 'listing', 'restore', 'backfill'));
comment on domain pgaudit_wf.version_source is 'How a version came about: create, update, listing, restore or backfill.';

create table pgaudit_wf.workflow_history (
    workflow_id text not null,
    version integer not null,
    org_id text,
    source pgaudit_wf.version_source not null,
    snapshot jsonb,
    change jsonb not null,
    content_hash text not null,
    previous_version integer,
    previous_hash text,
    restored_from integer,
    actor_id text default pgaudit_wf.context_value('app.actor_id'),
    actor_label text default pgaudit_wf.context_value('app.actor_label'),
    auth_method text default pgaudit_wf.context_value('app.auth_method'),
    api_key_id text default pgaudit_wf.context_value('app.api_key_id'),
    correlation_id text default pgaudit_wf.context_value('app.correlation_id'),
    created_at timestamptz not null default clock_timestamp(),
    pruned_at timestamptz,
    tx_id bigint not null default (pg_current_xact_id()::text::bigint),
    primary key (workflow_id, version)
);
comment on table pgaudit_wf.workflow_history is 'Every version of every workflow, append-only. Made by the triggers of attach_workflow(); read workflow_timeline.';
comment on column pgaudit_wf.workflow_history.workflow_id is 'Id of the workflow (resource_id of its events); with <resource_type>/ before it for all but the first attached workflow table.';
comment on column pgaudit_wf.workflow_history.version is '1, 2, 3, … without gaps.';
comment on column pgaudit_wf.workflow_history.org_id is 'Organisation of the workflow.';
comment on column pgaudit_wf.workflow_history.source is 'create, update, listing (its marketplace listing changed), restore, or backfill (older than its table''s attachment).';
comment on column pgaudit_wf.workflow_history.snapshot is 'The version in full: name, description, visibility, enabled, nodes, edges as saved, canvas positions included; null once pruned.';
comment on column pgaudit_wf.workflow_history.change is 'version_diff() from the previous version, for people.';
comment on column pgaudit_wf.workflow_history.content_hash is 'hash_definition() of nodes and edges.';
comment on column pgaudit_wf.workflow_history.previous_version is 'version - 1; null for the first.';
comment on column pgaudit_wf.workflow_history.previous_hash is 'content_hash of the previous version.';
comment on column pgaudit_wf.workflow_history.restored_from is 'The version that was put back, for source restore.';
comment on column pgaudit_wf.workflow_history.actor_id is 'Who saved it (app.actor_id).';
comment on column pgaudit_wf.workflow_history.actor_label is 'Name of the actor at that time (app.actor_label).';
comment on column pgaudit_wf.workflow_history.auth_method is 'How the actor signed in (app.auth_method).';
comment on column pgaudit_wf.workflow_history.api_key_id is 'Id of the API key that was used, if any (app.api_key_id).';
comment on column pgaudit_wf.workflow_history.correlation_id is 'Request it was saved in (app.correlation_id).';
comment on column pgaudit_wf.workflow_history.created_at is 'When it was saved.';
comment on column pgaudit_wf.workflow_history.pruned_at is 'When prune_history() let go of its snapshot; null while it is there.';
comment on column pgaudit_wf.workflow_history.tx_id is '64-bit id of the transaction that saved it, by which the sealer finds what is new.';

create index workflow_history_hash on pgaudit_wf.workflow_history (content_hash);
create index workflow_history_org on pgaudit_wf.workflow_history (org_id, created_at);
create index workflow_history_tx on pgaudit_wf.workflow_history (tx_id);

create trigger append_only before update or delete or truncate on pgaudit_wf.workflow_history
    for each statement execute function pgaudit_wf.refuse_change();
alter table pgaudit_wf.workflow_history enable always trigger append_only;

alter table pgaudit_wf.workflow_history enable row level security;
create policy readable_org on pgaudit_wf.workflow_history for select using (org_id = (select pgaudit_wf.readable_org()));

-- Several times faster than the default on documents of this size, where the server was built with it.
do $$
begin
    alter table pgaudit_wf.workflow_history alter column snapshot set compression lz4;
exception
    when feature_not_supported or invalid_parameter_value then
        null;
end
$$;

create function pgaudit_wf.latest_hash(workflow_id text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select h.content_hash from pgaudit_wf.workflow_history as h where h.workflow_id = latest_hash.workflow_id order by h.version desc limit 1
$$;
comment on function pgaudit_wf.latest_hash(text) is 'content_hash of the newest version of a workflow; null if it has none.';

create function pgaudit_wf.restored_version(
    workflow_id text, before jsonb, after jsonb, content_hash text, previous_hash text) returns integer
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    claimed constant text := current_setting('pgaudit_wf.restoring', true);
begin
    -- Anybody can write the setting: a restore is what leaves the content of the version that it names, and changed something to do so.
    if claimed is null or claimed !~ '^[0-9]{1,9}$' or (restored_version.content_hash is not distinct from restored_version.previous_hash
        and before ->> 'name' is not distinct from after ->> 'name' and before ->> 'description' is not distinct from after ->> 'description')
    then
        return null;
    end if;
    return (
        select h.version
        from pgaudit_wf.workflow_history as h
        where h.workflow_id = restored_version.workflow_id and h.version = claimed::integer
            and h.content_hash = restored_version.content_hash
            and (not h.snapshot ? 'name' or h.snapshot ->> 'name' is not distinct from after ->> 'name')
            and (not h.snapshot ? 'description' or h.snapshot ->> 'description' is not distinct from after ->> 'description'));
end
$$;
comment on function pgaudit_wf.restored_version(text, jsonb, jsonb, text, text) is
    'The version that a save by restore_workflow() puts back; null for any other save.';

create function pgaudit_wf.add_version(
    workflow_id text, org_id text, source text, before jsonb, after jsonb,
    old_nodes jsonb, old_edges jsonb, new_nodes jsonb, new_edges jsonb)
returns pgaudit_wf.version_ref
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    latest record;
    made pgaudit_wf.version_ref;
begin
    -- The row lock on the workflow, which our caller's UPDATE holds, makes versions of one workflow one after the other.
    select h.version, h.content_hash, h.snapshot #> '{}' as snapshot into latest
    from pgaudit_wf.workflow_history as h where h.workflow_id = add_version.workflow_id order by h.version desc limit 1;
    if latest.snapshot is not null then
        -- What the table holds is another state only where something was changed past its triggers: the next version shows it.
        before := latest.snapshot;
        old_nodes := latest.snapshot -> 'nodes';
        old_edges := latest.snapshot -> 'edges';
    elsif latest.version is null and add_version.before is not null then
        -- Older than the attachment: what it was until now is the first version, unless it was malformed and has no hash.
        begin
            latest.content_hash := pgaudit_wf.hash_definition(add_version.old_nodes, add_version.old_edges);
            latest.version := 1;
            insert into pgaudit_wf.workflow_history (workflow_id, version, org_id, source, snapshot, change, content_hash, actor_id, actor_label, auth_method, api_key_id, correlation_id)
            values (add_version.workflow_id, 1, add_version.org_id, 'backfill',
                add_version.before || jsonb_build_object('nodes', add_version.old_nodes, 'edges', add_version.old_edges),
                pgaudit_wf.snapshot_diff(null, add_version.before, null, null, add_version.old_nodes, add_version.old_edges),
                latest.content_hash, null, null, null, null, null);
        exception
            when sqlstate 'PA201' or sqlstate 'PA202' or sqlstate 'PA203' then
                before := null;
        end;
    end if;
    made.version := coalesce(latest.version, 0) + 1;
    made.previous_hash := latest.content_hash;
    if before is null or jsonb_typeof(old_nodes) not in ('array', 'null') or jsonb_typeof(old_edges) not in ('array', 'null') then
        old_nodes := null;
        old_edges := null;
    end if;
    made.content_hash := case
        when latest.snapshot is null then pgaudit_wf.hash_definition(new_nodes, new_edges)
        when not record_image_ne(row(old_nodes, old_edges), row(new_nodes, new_edges)) then latest.content_hash
        else pgaudit_wf.hash_next_version(add_version.workflow_id, latest.version, old_nodes, old_edges, new_nodes, new_edges) end;
    if current_setting('pgaudit_wf.restoring', true) <> '' then
        made.restored_from := pgaudit_wf.restored_version(add_version.workflow_id, before, add_version.after, made.content_hash, made.previous_hash);
    end if;
    insert into pgaudit_wf.workflow_history (
        workflow_id, version, org_id, source, snapshot, change, content_hash, previous_version, previous_hash, restored_from)
    values (
        add_version.workflow_id, made.version, add_version.org_id,
        case when made.restored_from is null then add_version.source else 'restore' end,
        add_version.after,
        pgaudit_wf.snapshot_diff(before, add_version.after, old_nodes, old_edges, new_nodes, new_edges),
        made.content_hash, latest.version, latest.content_hash, made.restored_from);
    return made;
end
$$;
comment on function pgaudit_wf.add_version(text, text, text, jsonb, jsonb, jsonb, jsonb, jsonb, jsonb) is
    'Appends a version of a workflow; called by its table''s trigger. before is the settings as they were, null for a new workflow; after the whole snapshot. before, old_nodes and old_edges count only where the newest version does not tell.';

-- sql/core/270_attach_workflow.sql

-- attach_workflow(): versions for any table that holds a graph; and the guard that keeps a broken one from going live.

create function pgaudit_wf.check_workflow_columns(workflow pgaudit_wf.workflow_attachment) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    problem record;
begin
    select role, name, wanted, given into problem
    from (
        select role, name, wanted,
            (select format_type(atttypid, null) from pg_attribute where attrelid = (workflow).target and attname = name and not attisdropped) as given
        from (values
            ('nodes_column', (workflow).nodes_column, 'jsonb or json'),
            ('edges_column', (workflow).edges_column, 'jsonb or json'),
            ('name_column', (workflow).name_column, null),
            ('description_column', (workflow).description_column, null),
            ('visibility_column', (workflow).visibility_column, null),
            ('enabled_column', (workflow).enabled_column, 'boolean'),
            ('listed_column', (workflow).listed_column, 'boolean')
        ) as named (role, name, wanted)
        union all
        select 'listing_columns', name, null,
            (select format_type(atttypid, null) from pg_attribute where attrelid = (workflow).target and attname = name and not attisdropped)
        from unnest((workflow).listing_columns) as name
    ) as columns
    where name is not null and (given is null or strpos(' ' || coalesce(wanted, given) || ' ', ' ' || given || ' ') = 0);
    if found then
        raise exception '% of % must be a column%: "%" is %', problem.role, (workflow).target,
            coalesce(format(' of type %s', problem.wanted), ''), problem.name, coalesce(problem.given, 'not there')
            using errcode = 'PA002', hint = 'Name the right column, or '''' for one that the table does not have.';
    end if;
end
$$;
comment on function pgaudit_wf.check_workflow_columns(pgaudit_wf.workflow_attachment) is 'Raises PA002 naming the column that is missing or of the wrong type.';

create function pgaudit_wf.attach_workflow(
    target regclass,
    nodes_column text default null,
    edges_column text default null,
    resource_type text default null,
    id_columns text[] default null,
    org_column text default null,
    label_column text default null,
    ignore text[] default null,
    redact text[] default null,
    on_failure text default null,
    name_column text default null,
    description_column text default null,
    visibility_column text default null,
    enabled_column text default null,
    listed_column text default null,
    listing_columns text[] default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    workflow pgaudit_wf.workflow_attachment;
    columns_now constant text[] := pgaudit_wf.column_names(attach_workflow.target);
    type text;
begin
    perform pgaudit_wf.check_attachable(attach_workflow.target);
    select * into workflow from pgaudit_wf.workflow_attachment as w where w.target = attach_workflow.target;
    if not found then
        type := coalesce(nullif(attach_workflow.resource_type, ''),
            (select a.resource_type from pgaudit_wf.attachment as a where a.target = attach_workflow.target),
            (select relname from pg_class where oid = attach_workflow.target));
        workflow.id_prefix := case when exists (select from pgaudit_wf.workflow_attachment) then type || '/' else '' end;
        workflow.listing_columns := '{}';
        -- As in the reference application, where a column of that name is there.
        workflow.name_column := case when 'name' = any (columns_now) then 'name' end;
        workflow.description_column := case when 'description' = any (columns_now) then 'description' end;
        workflow.visibility_column := case when 'visibility' = any (columns_now) then 'visibility' end;
        workflow.enabled_column := case when 'enabled' = any (columns_now) then 'enabled' end;
        workflow.listed_column := case when 'listed' = any (columns_now) then 'listed' end;
    end if;
    workflow.target := attach_workflow.target;
    workflow.nodes_column := coalesce(attach_workflow.nodes_column, workflow.nodes_column, 'nodes');
    workflow.edges_column := coalesce(attach_workflow.edges_column, workflow.edges_column, 'edges');
    workflow.name_column := nullif(coalesce(attach_workflow.name_column, workflow.name_column), '');
    workflow.description_column := nullif(coalesce(attach_workflow.description_column, workflow.description_column), '');
    workflow.visibility_column := nullif(coalesce(attach_workflow.visibility_column, workflow.visibility_column), '');
    workflow.enabled_column := nullif(coalesce(attach_workflow.enabled_column, workflow.enabled_column), '');
    workflow.listed_column := nullif(coalesce(attach_workflow.listed_column, workflow.listed_column), '');
    workflow.listing_columns := coalesce(attach_workflow.listing_columns, workflow.listing_columns);
    if workflow.listed_column <> all (workflow.listing_columns) then
        workflow.listing_columns := workflow.listed_column || workflow.listing_columns;
    end if;
    perform pgaudit_wf.check_workflow_columns(workflow);

    delete from pgaudit_wf.workflow_attachment as w where w.target = attach_workflow.target;
    insert into pgaudit_wf.workflow_attachment select workflow.*;
    perform pgaudit_wf.attach(
        attach_workflow.target, attach_workflow.resource_type, attach_workflow.id_columns, attach_workflow.org_column,
        coalesce(attach_workflow.label_column, case when not exists (
            select from pgaudit_wf.attachment as a where a.target = attach_workflow.target) then workflow.name_column end), attach_workflow.ignore, attach_workflow.redact, attach_workflow.on_failure);
end
$$;
comment on function pgaudit_wf.attach_workflow(regclass, text, text, text, text[], text, text, text[], text[], text, text, text, text, text, text, text[]) is
    'attach() for a table that holds workflows: also keeps versions in workflow_history, one for every save that changes something meaningful in the graph (nodes_column, edges_column: nodes and edges unless said otherwise) or in name, description, visibility, enabled or the listing. '
    'Events then carry content_hash in place of the graph. Enabling or listing an invalid definition is refused (PA301). The name, description, visibility, enabled and listed columns are taken by those names where they are there; '''' for none. '
    'Raises PA002 on a column that is missing or of the wrong type, and whatever attach() raises.';

create function pgaudit_wf.detach_workflow(target regclass) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$ select pgaudit_wf.detach(detach_workflow.target) $$;
comment on function pgaudit_wf.detach_workflow(regclass) is
    'Stops keeping versions of a table, and recording it: detach() by the name that goes with attach_workflow(). Versions and events stay. Raises PA005 if it is not attached.';

create function pgaudit_wf.check_definition(nodes jsonb, edges jsonb, doing text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    problems jsonb;
begin
    select jsonb_agg(to_jsonb(p)) into problems from pgaudit_wf.validate_definition(check_definition.nodes, check_definition.edges) as p;
    if problems is not null then
        raise exception 'the workflow cannot be % with % problem%: %', doing, jsonb_array_length(problems),
            case when jsonb_array_length(problems) = 1 then '' else 's' end,
            (select string_agg(problem ->> 'message', '; ' order by position)
                from jsonb_array_elements(problems) with ordinality as listed (problem, position) where position <= 5)
            using errcode = 'PA301', detail = problems::text, hint = 'Mend them and try again; pgaudit_wf.validate_definition(nodes, edges) lists them.';
    end if;
end
$$;
comment on function pgaudit_wf.check_definition(jsonb, jsonb, text) is
    'Raises PA301 with the problems (as JSON in the detail) of a definition that is about to be enabled, listed or run.';

create function pgaudit_wf.is_restored(target regclass, stamped boolean) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    -- Every script of pg_dump and pg_restore sets it, whatever its options; applications have no use for it.
    restoring constant boolean := current_setting('check_function_bodies') = 'off';
begin
    -- Also where the trigger was made to fire always, as some do with all of them when a subscriber takes over.
    if current_setting('session_replication_role') = 'replica' then
        return true;
    end if;
    if not restoring and not (stamped and current_query() ~* '^\s*copy\M') then
        return false;
    end if;
    -- Anybody can claim to restore. It counts for those only who may disable the trigger; by their login, as the trigger is a definer.
    if pg_has_role(session_user, (select relowner from pg_class where oid = is_restored.target), 'member') then
        return true;
    end if;
    if restoring and stamped then
        raise exception '% does not own %, so the runs that it restores would be stamped anew', session_user, is_restored.target
            using errcode = 'PA303', hint = 'Restore them as the owner of the table or as a superuser.';
    end if;
    return false;
end
$$;
comment on function pgaudit_wf.is_restored(regclass, boolean) is
    'Whether a row being inserted is one from elsewhere, which is neither judged nor stamped: a replica applies it; or the owner of the table, a member or a superuser restores it from a dump, or loads it by COPY with a stamp. '
    'Raises PA303 when anybody else restores a row that has a stamp.';

create function pgaudit_wf.guard_function_name(setting pgaudit_wf.attachment) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$ select 'guard_' || substr((setting).function_name, length('capture_') + 1) $$;
comment on function pgaudit_wf.guard_function_name(pgaudit_wf.attachment) is 'Name of the guard''s trigger function, beside that of the capture.';

create function pgaudit_wf.guard_body(setting pgaudit_wf.attachment) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    workflow pgaudit_wf.workflow_attachment := (select w from pgaudit_wf.workflow_attachment as w where w.target = (setting).target);
    generic constant boolean := (setting).form = 'generic';
    body text := '';
    switch record;
begin
    if workflow.target is null or coalesce(workflow.enabled_column, workflow.listed_column) is null then
        return null;
    end if;
    for switch in
        select name, doing from (values (workflow.enabled_column, 'enabled'), (workflow.listed_column, 'listed')) as s (name, doing) where name is not null
    loop
        body := body || case when generic then format(
                e'    if (after ->> %1$L)::boolean and (before ->> %1$L)::boolean is not true and not pgaudit_wf.is_restored(tg_relid, false) then\n'
                '        perform pgaudit_wf.check_definition(after -> %2$L, after -> %3$L, %4$L);\n    end if;\n',
                switch.name, workflow.nodes_column, workflow.edges_column, switch.doing)
            else format(
                e'    if %1$s and (tg_op = ''INSERT'' or %5$s is not true) and not pgaudit_wf.is_restored(tg_relid, false) then\n'
                '        perform pgaudit_wf.check_definition(%2$s, %3$s, %4$L);\n    end if;\n',
                pgaudit_wf.field('new', switch.name), pgaudit_wf.record_value(setting, 'new', workflow.nodes_column),
                pgaudit_wf.record_value(setting, 'new', workflow.edges_column), switch.doing, pgaudit_wf.field('old', switch.name)) end;
    end loop;
    if generic then
        body := format(e'    after := pgaudit_wf.generic_row(new, setting);%s\n    if tg_op = ''UPDATE'' then\n        before := pgaudit_wf.generic_row(old, setting);%s\n    end if;\n',
            pgaudit_wf.follow_names(setting, 'after'), pgaudit_wf.follow_names(setting, 'before')) || body;
    end if;
    return format(e'\n-- Keeps an invalid workflow from going live; written by pgaudit_wf.attach_workflow(). Columns as of %s.\n%sbegin%s\n%s    return new;\nend\n',
        pgaudit_wf.shape_of((setting).target),
        case when generic then format(e'declare\n    setting constant pgaudit_wf.generic_setting := %s;\n    before jsonb;\n    after jsonb;\n',
            pgaudit_wf.describe_generic(setting)) else '' end,
        pgaudit_wf.check_place((setting).target, pgaudit_wf.guard_function_name(setting)), body);
end
$$;
comment on function pgaudit_wf.guard_body(pgaudit_wf.attachment) is
    'The body of the trigger function that refuses to enable or list an invalid workflow; null for other tables.';

-- sql/core/275_attach_execution.sql

-- Runs: stamped with the credential that started them and the definition that ran, by trigger, once and for all.

create view pgaudit_wf.credential_directory as
select
    null::text as credential_id,
    null::text as credential_type,
    null::text as label
where false;
comment on view pgaudit_wf.credential_directory is
    'API keys by handle, for the stamp of a run. Empty until you point it at your own keys: create or replace view pgaudit_wf.credential_directory as select id::text as credential_id, ''org_api_key'' as credential_type, prefix as label from …';
comment on column pgaudit_wf.credential_directory.credential_id is 'Id as in app.api_key_id.';
comment on column pgaudit_wf.credential_directory.credential_type is 'webhook_key or org_api_key.';
comment on column pgaudit_wf.credential_directory.label is 'A handle that people recognise and that is no secret, such as kh_9f2….';

create function pgaudit_wf.current_credential(out credential_type text, out label text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- Rather an error than the policies of the tables behind the views, run by us.
set row_security = off
as $$
declare
    key_id constant text := pgaudit_wf.context_value('app.api_key_id');
    method constant text := pgaudit_wf.context_value('app.auth_method');
    actor constant text := pgaudit_wf.context_value('app.actor_id');
    known text;
begin
    -- A directory that we may not read costs the name, not the run.
    begin
        if key_id is not null then
            select d.credential_type, d.label into credential_type, label
            from pgaudit_wf.credential_directory as d where d.credential_id = key_id limit 1;
        elsif actor is not null then
            select coalesce(d.email, d.name) into known from pgaudit_wf.actor_directory as d where d.actor_id = actor limit 1;
        end if;
    exception
        when insufficient_privilege then
            raise warning 'the directory of credentials or actors cannot be read' using hint = 'pgaudit_wf.doctor() says why.';
    end;
    credential_type := coalesce(credential_type, case
        when method in ('webhook_key', 'org_api_key', 'oauth', 'session', 'internal') then method
        when method in ('api_key', 'key') or key_id is not null then 'org_api_key'
        when method = 'webhook' then 'webhook_key'
        when actor is not null then 'session'
        else 'internal'
    end);
    if label is null and key_id is null then
        label := coalesce(
            pgaudit_wf.context_value('app.actor_label'),
            known,
            actor,
            session_user::text);
    end if;
    label := coalesce(label, key_id);
end
$$;
comment on function pgaudit_wf.current_credential() is
    'The credential behind the current transaction: its type (webhook_key, org_api_key, oauth, session, internal; from credential_directory by app.api_key_id, else from app.auth_method) and a handle that is no secret.';

create table pgaudit_wf.execution_attachment (
    target regclass primary key,
    workflow_target regclass not null,
    workflow_column text not null,
    hash_column text not null,
    type_column text not null,
    label_column text not null,
    id_column text not null,
    org_column text,
    time_column text,
    function_name text not null unique
);
comment on table pgaudit_wf.execution_attachment is 'Tables that hold the runs of workflows, and where; written by attach_execution() and detach_execution() only.';
comment on column pgaudit_wf.execution_attachment.target is 'The table of runs.';
comment on column pgaudit_wf.execution_attachment.workflow_target is 'The attached workflow table whose workflows run.';
comment on column pgaudit_wf.execution_attachment.workflow_column is 'Column with the workflow''s id.';
comment on column pgaudit_wf.execution_attachment.hash_column is 'Column that is stamped with the hash of the definition.';
comment on column pgaudit_wf.execution_attachment.type_column is 'Column that is stamped with the credential''s type.';
comment on column pgaudit_wf.execution_attachment.label_column is 'Column that is stamped with the credential''s handle.';
comment on column pgaudit_wf.execution_attachment.id_column is 'Primary key of the table.';
comment on column pgaudit_wf.execution_attachment.org_column is 'Column with the organisation, if any.';
comment on column pgaudit_wf.execution_attachment.time_column is 'Column that says when the run started, if any.';
comment on column pgaudit_wf.execution_attachment.function_name is 'Trigger function in schema pgaudit_wf.';

create function pgaudit_wf.runnable_hash(workflow_target regclass, id text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    prefix constant text := (select w.id_prefix from pgaudit_wf.workflow_attachment as w where w.target = runnable_hash.workflow_target);
    newest record;
begin
    -- The history, not the table: reading that would run its owner's policies, casts and domains with our rights.
    select h.content_hash, h.snapshot #> '{}' as snapshot into newest
    from pgaudit_wf.workflow_history as h
    where h.workflow_id = prefix || pgaudit_wf.bounded_key(runnable_hash.id)
    order by h.version desc limit 1;
    if found then
        perform pgaudit_wf.check_definition(newest.snapshot -> 'nodes', newest.snapshot -> 'edges', 'run');
    end if;
    return newest.content_hash;
end
$$;
comment on function pgaudit_wf.runnable_hash(regclass, text) is
    'Hash of a workflow''s newest version, which is what a run of it executes now; null for a workflow without versions; raises PA301 if the definition is invalid.';

create function pgaudit_wf.refuse_restamp() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    -- What a subscription applies was decided where it was written; refused here, it would stop the subscription for good.
    if exists (select from pg_stat_subscription where pid = pg_backend_pid()) then
        return new;
    end if;
    raise exception 'the stamp of a run in %.% cannot be altered', tg_table_schema, tg_table_name
        using errcode = 'PA303', hint = 'Credential and definition hash are written once, when the run is inserted; leave them out of the update.';
end
$$;
comment on function pgaudit_wf.refuse_restamp() is 'Trigger that keeps the stamp of a run as it is: raises PA303, except for what a logical subscription applies.';

create function pgaudit_wf.write_stamp(run pgaudit_wf.execution_attachment) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgaudit_wf.replace_function((run).function_name, format($body$
-- Stamps each run with credential and definition; written by pgaudit_wf.attach_execution(). Columns as of %6$s.
declare
    credential record;
begin%7$s
    if greatest(pg_typeof(%2$s)::oid, pg_typeof(%3$s)::oid, pg_typeof(%4$s)::oid) >= 16384 then
        raise warning 'this run has no stamp: a column for it was given a type that is not PostgreSQL''s own';
        return new;
    end if;
    if pgaudit_wf.is_restored(tg_relid, %2$s is not null) then
        return new;
    end if;
    select * into credential from pgaudit_wf.current_credential();
    %2$s := credential.credential_type;
    %3$s := credential.label;
    -- The workflow table is looked up, as it can be renamed. A type of others is not cast, as the cast can be theirs too.
    %4$s := pgaudit_wf.runnable_hash(
        (select e.workflow_target from pgaudit_wf.execution_attachment as e where e.function_name = %1$L),
        case when pg_typeof(%5$s)::oid < 16384 then %5$s::text else concat(%5$s) end);
    return new;
end
$body$, (run).function_name, pgaudit_wf.field('new', (run).type_column), pgaudit_wf.field('new', (run).label_column),
        pgaudit_wf.field('new', (run).hash_column), pgaudit_wf.field('new', (run).workflow_column), pgaudit_wf.shape_of((run).target),
        pgaudit_wf.check_place((run).target, (run).function_name)),
        '{}', (run).target, 'Stamps the runs of a table; see pgaudit_wf.execution_attachment.');
end
$$;
comment on function pgaudit_wf.write_stamp(pgaudit_wf.execution_attachment) is 'Writes the trigger function that stamps the runs of a table.';

create function pgaudit_wf.attach_execution(
    target regclass,
    workflow regclass default null,
    workflow_column text default 'workflow_id',
    hash_column text default 'executed_workflow_hash',
    type_column text default 'triggered_by_credential_type',
    label_column text default 'triggered_by_credential_label',
    org_column text default null,
    time_column text default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    columns_now constant text[] := pgaudit_wf.column_names(attach_execution.target);
    run pgaudit_wf.execution_attachment;
    missing text;
    foreign_type text;
begin
    perform pgaudit_wf.check_attachable(attach_execution.target);
    run.target := attach_execution.target;
    run.workflow_target := coalesce(attach_execution.workflow, (select w.target from pgaudit_wf.workflow_attachment as w order by w.id_prefix limit 1));
    if not exists (select from pgaudit_wf.workflow_attachment as w where w.target = run.workflow_target) then
        raise exception '% is no attached workflow table', coalesce(run.workflow_target::text, 'there')
            using errcode = 'PA005', hint = 'Call pgaudit_wf.attach_workflow() for it first.';
    end if;
    run.workflow_column := attach_execution.workflow_column;
    run.hash_column := attach_execution.hash_column;
    run.type_column := attach_execution.type_column;
    run.label_column := attach_execution.label_column;
    run.org_column := coalesce(attach_execution.org_column, case when 'org_id' = any (columns_now) then 'org_id' end);
    run.time_column := coalesce(attach_execution.time_column, (
        select name from unnest(array['started_at', 'created_at']) with ordinality as usual (name, position)
        where name = any (columns_now) order by position limit 1));
    -- Nobody told us of a table that was dropped; and one that was renamed keeps the function of its old name.
    delete from pgaudit_wf.execution_attachment as e where not exists (select from pg_class where oid = e.target);
    run.function_name := 'stamp_' || substr(pgaudit_wf.capture_function_name(attach_execution.target), 9);
    run.function_name := coalesce(
        (select e.function_name from pgaudit_wf.execution_attachment as e where e.target = run.target),
        (select run.function_name || '_' || run.target::oid from pgaudit_wf.execution_attachment as e where e.function_name = run.function_name),
        run.function_name);
    select name into missing
    from unnest(array_remove(array[run.workflow_column, run.hash_column, run.type_column, run.label_column, run.org_column, run.time_column], null)) as name
    where name <> all (columns_now) limit 1;
    if found then
        raise exception '% has no column "%"', run.target, missing
            using errcode = 'PA002', hint = format('Its columns are %s.', array_to_string(columns_now, ', '));
    end if;
    select attname into run.id_column
    from pg_index join pg_attribute on attrelid = run.target and attnum = indkey[0]
    where indrelid = run.target and indisprimary and indnkeyatts = 1;
    if run.id_column is null then
        raise exception '% has no primary key of one column', run.target using errcode = 'PA002', hint = 'A run is named by it.';
    end if;

    select name into foreign_type
    from unnest(array[run.hash_column, run.type_column, run.label_column]) as name
    join pg_attribute on attrelid = run.target and attname = name and atttypid >= 16384 limit 1;
    if found then
        raise exception 'column "%" of % cannot be stamped, as its type is not one of PostgreSQL''s own', foreign_type, run.target
            using errcode = 'PA002', hint = 'Make it text or varchar: values of other types can run code of others, with our rights.';
    end if;

    perform pgaudit_wf.write_stamp(run);
    -- prune_history() asks, as the owner of our schema, which versions have run.
    perform pgaudit_wf.let_owner_read(run.target, array[run.hash_column]);
    -- Not "always": what a subscriber applies was stamped where it ran. Who makes a replica of his own session could disable it too.
    execute format('create or replace trigger pgaudit_wf_stamp before insert on %s for each row execute function pgaudit_wf.%I()', run.target, run.function_name);
    execute format('create or replace trigger pgaudit_wf_restamp before update on %1$s for each row'
        ' when (old.%2$I is distinct from new.%2$I or old.%3$I is distinct from new.%3$I or old.%4$I is distinct from new.%4$I)'
        ' execute function pgaudit_wf.refuse_restamp()', run.target, run.type_column, run.label_column, run.hash_column);
    execute format('alter table %s enable always trigger pgaudit_wf_restamp', run.target);

    delete from pgaudit_wf.execution_attachment as e where e.target = run.target;
    insert into pgaudit_wf.execution_attachment select run.*;
end
$$;
comment on function pgaudit_wf.attach_execution(regclass, regclass, text, text, text, text, text, text) is
    'Has every run inserted into the table stamped with the credential that started it and the hash of the definition that runs, whatever the application writes there; refuses runs of an invalid definition (PA301) and later changes of the stamp (PA303). '
    'Runs that a subscription applies or the table''s owner restores keep the stamp that they come with. workflow is the attached workflow table (default: the first); back-fill it first, as a run of a workflow without a version gets no hash. Raises PA002 on a missing column, PA005 without a workflow table. Call it again after renaming one of the columns.';

create function pgaudit_wf.detach_execution(target regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    run pgaudit_wf.execution_attachment;
begin
    delete from pgaudit_wf.execution_attachment as e where e.target = detach_execution.target returning e.* into run;
    if not found then
        raise exception '% is not attached', detach_execution.target using errcode = 'PA005';
    end if;
    execute format('drop trigger if exists pgaudit_wf_stamp on %s', run.target);
    execute format('drop trigger if exists pgaudit_wf_restamp on %s', run.target);
    execute format('drop function pgaudit_wf.%I()', run.function_name);
end
$$;
comment on function pgaudit_wf.detach_execution(regclass) is 'Stops stamping runs; the stamps stay. Raises PA005 if the table is not attached.';

-- sql/core/280_workflow_timeline.sql

-- Reading versions: the timeline, one version, two compared, and who ever used a definition.

create function pgaudit_wf.actor_name(actor_id text, org_id text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select a.name from pgaudit_wf.present_actors(array[actor_name.actor_id], array[actor_name.org_id],
        row_security_active('pgaudit_wf.workflow_history')) as a limit 1);
end
$$;
comment on function pgaudit_wf.actor_name(text, text) is 'Present name of an actor, as far as the caller may see it.';

create function pgaudit_wf.version_line(source text, restored_from integer, change jsonb) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case source
        when 'create' then 'created with ' || contents
        when 'backfill' then 'found with ' || contents
        when 'restore' then format('version %s put back: %s', restored_from, summary)
        when 'listing' then 'listing changed' || case when summary = 'no changes' then '' else '; ' || summary end
        else summary
    end
    from (
        select
            pgaudit_wf.version_summary(change) as summary,
            format('%s node%s and %s connection%s', nodes, case when nodes = 1 then '' else 's' end, connections, case when connections = 1 then '' else 's' end) as contents
        from (select jsonb_array_length(change -> 'nodes_added') as nodes, jsonb_array_length(change -> 'connections_added') as connections) as counted
    ) as words
$$;
comment on function pgaudit_wf.version_line(text, integer, jsonb) is 'A version in one line: how it came about, and what changed.';

create view pgaudit_wf.workflow_timeline with (security_invoker = true) as
select
    h.workflow_id,
    h.version,
    h.created_at,
    h.actor_id,
    coalesce(pgaudit_wf.actor_name(h.actor_id, h.org_id), h.actor_label) as actor_name,
    h.auth_method,
    h.api_key_id,
    h.source,
    h.restored_from,
    pgaudit_wf.version_line(h.source, h.restored_from, h.change) as summary,
    h.content_hash,
    h.change,
    h.org_id,
    h.correlation_id,
    h.version = (select max(newest.version) from pgaudit_wf.workflow_history as newest where newest.workflow_id = h.workflow_id) as is_current
from pgaudit_wf.workflow_history as h;
comment on view pgaudit_wf.workflow_timeline is 'The versions of workflows as people read them: who, when, with what, and what changed in one line.';
comment on column pgaudit_wf.workflow_timeline.workflow_id is 'Id of the workflow.';
comment on column pgaudit_wf.workflow_timeline.version is '1, 2, 3, …';
comment on column pgaudit_wf.workflow_timeline.created_at is 'When it was saved.';
comment on column pgaudit_wf.workflow_timeline.actor_id is 'Who saved it.';
comment on column pgaudit_wf.workflow_timeline.actor_name is 'His present name, else the one kept in the version.';
comment on column pgaudit_wf.workflow_timeline.auth_method is 'How he had signed in.';
comment on column pgaudit_wf.workflow_timeline.api_key_id is 'The API key used, if any.';
comment on column pgaudit_wf.workflow_timeline.source is 'create, update, listing, restore or backfill.';
comment on column pgaudit_wf.workflow_timeline.restored_from is 'The version put back, for a restore.';
comment on column pgaudit_wf.workflow_timeline.summary is 'What changed, in one line.';
comment on column pgaudit_wf.workflow_timeline.content_hash is 'Hash of the definition.';
comment on column pgaudit_wf.workflow_timeline.change is 'What changed, in full: version_diff() from the version before.';
comment on column pgaudit_wf.workflow_timeline.org_id is 'Organisation of the workflow.';
comment on column pgaudit_wf.workflow_timeline.correlation_id is 'Request it was saved in.';
comment on column pgaudit_wf.workflow_timeline.is_current is 'Whether it is the newest version.';

create function pgaudit_wf.touches_node(change jsonb, node_id text) returns boolean
language sql immutable parallel safe
as $$
    select jsonb_path_exists(change, '$.* ? (@.id == $node)', jsonb_build_object('node', node_id))
$$;
comment on function pgaudit_wf.touches_node(jsonb, text) is 'Whether a version''s change added, removed or changed the node.';

create function pgaudit_wf.workflow_versions(
    workflow_id text,
    node_id text default null,
    source_id text default null,
    target_id text default null,
    before_version integer default null,
    page_size integer default 50
) returns setof pgaudit_wf.workflow_timeline
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if coalesce(workflow_versions.page_size, 0) not between 1 and 1000 then
        raise exception 'page_size must be from 1 to 1000' using errcode = 'PA008';
    end if;
    -- The limit first: names and summaries are worked out for the page only.
    return query
        with page as materialized (
            select h.version from pgaudit_wf.workflow_history as h
            where h.workflow_id = workflow_versions.workflow_id
                and (workflow_versions.before_version is null or h.version < workflow_versions.before_version)
                and (workflow_versions.node_id is null or pgaudit_wf.touches_node(h.change, workflow_versions.node_id))
                and (workflow_versions.source_id is null and workflow_versions.target_id is null or exists (
                    select from jsonb_array_elements((h.change -> 'connections_added') || (h.change -> 'connections_removed')) as connection
                    where (workflow_versions.source_id is null or connection ->> 'from_id' = workflow_versions.source_id)
                        and (workflow_versions.target_id is null or connection ->> 'to_id' = workflow_versions.target_id)))
            order by h.version desc limit workflow_versions.page_size
        )
        select t.* from pgaudit_wf.workflow_timeline as t
        where t.workflow_id = workflow_versions.workflow_id and t.version in (select page.version from page)
        order by t.version desc;
end
$$;
comment on function pgaudit_wf.workflow_versions(text, text, text, text, integer, integer) is
    'A page of a workflow''s versions, newest first; narrowed to those that touched a node (node_id) or a connection (source_id, target_id). Next page: before_version => the last version of the page. Raises PA008 on a page_size outside 1 to 1000.';

create function pgaudit_wf.org_version_snapshot(workflow_id text, version integer, out org_id text, out snapshot jsonb, out content_hash text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select h.org_id, h.snapshot, h.content_hash from pgaudit_wf.workflow_history as h
    where h.workflow_id = org_version_snapshot.workflow_id and h.version = org_version_snapshot.version
        and h.org_id is not distinct from nullif(current_setting('app.org_id', true), '')
$$;
comment on function pgaudit_wf.org_version_snapshot(text, integer) is
    'A version of a workflow of the organisation app.org_id, or of one without organisation while that is not set; nulls for any other.';

create function pgaudit_wf.version_snapshot(workflow_id text, version integer) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    kept jsonb;
    hash text;
begin
    if has_table_privilege('pgaudit_wf.workflow_history', 'select') then
        select h.snapshot, h.content_hash into kept, hash from pgaudit_wf.workflow_history as h
        where h.workflow_id = version_snapshot.workflow_id and h.version = version_snapshot.version
            -- Who may read all organisations acts in one all the same, where the request says in which.
            and (h.org_id = current_setting('app.org_id', true) or h.org_id is null or coalesce(current_setting('app.org_id', true), '') = '');
    else
        select s.snapshot, s.content_hash into kept, hash
        from pgaudit_wf.org_version_snapshot(version_snapshot.workflow_id, version_snapshot.version) as s;
    end if;
    if hash is null then
        raise exception 'there is no version % of workflow %', version_snapshot.version, version_snapshot.workflow_id
            using errcode = 'PA302', hint = 'See pgaudit_wf.workflow_timeline; another organisation''s workflows do not show.';
    end if;
    if kept is null then
        raise exception 'the snapshot of version % of workflow % was pruned', version_snapshot.version, version_snapshot.workflow_id
            using errcode = 'PA344', hint = 'What it changed, its hash and its author are still in pgaudit_wf.workflow_timeline; pgaudit_wf.version_policy says which snapshots stay.';
    end if;
    return kept;
end
$$;
comment on function pgaudit_wf.version_snapshot(text, integer) is
    'A version in full: {name, description, visibility, enabled, nodes, edges}. Raises PA302 if there is none, or none that the caller may see, PA344 if its snapshot was pruned.';

create function pgaudit_wf.compare_versions(workflow_id text, before integer, after integer) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.version_diff(
        pgaudit_wf.version_snapshot(compare_versions.workflow_id, compare_versions.before),
        pgaudit_wf.version_snapshot(compare_versions.workflow_id, compare_versions.after))
$$;
comment on function pgaudit_wf.compare_versions(text, integer, integer) is
    'version_diff() between any two versions of a workflow. Raises PA302 if one does not exist.';

create function pgaudit_wf.definition_usage(content_hash text)
returns table (kind text, workflow_id text, version integer, execution_id text, occurred_at timestamptz, org_id text, actor_id text, actor_name text,
    credential_type text, credential_label text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    run pgaudit_wf.execution_attachment;
    prefix text;
begin
    return query
        select 'version', t.workflow_id, t.version, null::text, t.created_at, t.org_id, t.actor_id, t.actor_name, t.auth_method, t.api_key_id
        from pgaudit_wf.workflow_timeline as t where t.content_hash = definition_usage.content_hash;
    for run in select e.* from pgaudit_wf.execution_attachment as e where has_table_privilege(e.target, 'select') loop
        prefix := (select w.id_prefix from pgaudit_wf.workflow_attachment as w where w.target = run.workflow_target);
        return query execute format(
            'select ''run'', $2 || r.%1$I::text, null::integer, r.%2$I::text, %3$s, %4$s, null::text, null::text, r.%5$I::text, r.%6$I::text from %7$s as r where r.%8$I = $1',
            run.workflow_column, run.id_column, pgaudit_wf.optional_column('r.%I::timestamptz', run.time_column, 'null::timestamptz'),
            pgaudit_wf.optional_column('r.%I::text', run.org_column, 'null::text'), run.type_column, run.label_column, run.target, run.hash_column)
            using definition_usage.content_hash, coalesce(prefix, '');
    end loop;
end
$$;
comment on function pgaudit_wf.definition_usage(text) is
    'Every version that had this definition and every run of it, also of workflows that are deleted: kind (version or run), who, when, with which credential. Runs as far as the caller may read their table.';

create function pgaudit_wf.execution_attribution(target regclass, id text)
returns table (execution_id text, workflow_id text, credential_type text, credential_label text, executed_workflow_hash text, occurred_at timestamptz,
    org_id text, version integer, snapshot jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    run pgaudit_wf.execution_attachment := (select e from pgaudit_wf.execution_attachment as e where e.target = execution_attribution.target);
    prefix text;
begin
    if run.target is null then
        raise exception '% is not attached as a table of runs', execution_attribution.target
            using errcode = 'PA005', hint = 'Call pgaudit_wf.attach_execution() for it.';
    end if;
    prefix := (select w.id_prefix from pgaudit_wf.workflow_attachment as w where w.target = run.workflow_target);
    return query execute format(
        'select r.%1$I::text, $2 || r.%2$I::text, r.%3$I::text, r.%4$I::text, r.%5$I::text, %6$s, %7$s, v.version, v.snapshot from %8$s as r'
        -- The newest version with that definition when it ran; its clock may be the application's, or its transaction's beginning.
        ' left join lateral (select h.version, h.snapshot from pgaudit_wf.workflow_history as h'
        '   cross join lateral (select coalesce(h.created_at <= %6$s, true) as was_there) as t'
        '   where h.workflow_id = $2 || r.%2$I::text and h.content_hash = r.%5$I'
        '   order by was_there desc, case when was_there then - h.version else h.version end limit 1) as v on true'
        ' where r.%1$I = $1::%9$s',
        run.id_column, run.workflow_column, run.type_column, run.label_column, run.hash_column,
        pgaudit_wf.optional_column('r.%I::timestamptz', run.time_column, 'null::timestamptz'), pgaudit_wf.optional_column('r.%I::text', run.org_column, 'null::text'),
        run.target, (select format_type(atttypid, atttypmod) from pg_attribute where attrelid = run.target and attname = run.id_column))
        using execution_attribution.id, coalesce(prefix, '');
end
$$;
comment on function pgaudit_wf.execution_attribution(regclass, text) is
    'The credential and the definition behind a run, joined to the version it ran, also after key, user and workflow are gone. Raises PA005 for a table that attach_execution() does not know.';

-- sql/core/285_restore_workflow.sql

-- Putting a version back: an ordinary update, so validation, history and audit all happen.

create type pgaudit_wf.workflow_place as (
    target regclass,
    row_id text,
    key_condition text,
    nodes_column text,
    edges_column text,
    name_column text,
    description_column text
);
comment on type pgaudit_wf.workflow_place is 'The table and row in which a workflow lives.';

create function pgaudit_wf.find_workflow(workflow_id text, target regclass) returns pgaudit_wf.workflow_place
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    workflow pgaudit_wf.workflow_attachment;
    place pgaudit_wf.workflow_place;
begin
    select w.* into workflow
    from pgaudit_wf.workflow_attachment as w
    where (find_workflow.target is null and starts_with(find_workflow.workflow_id, w.id_prefix)) or w.target = find_workflow.target
    order by length(w.id_prefix) desc limit 1;
    if workflow.target is null then
        raise exception 'there is no attached workflow table%', coalesce(' ' || find_workflow.target, '')
            using errcode = 'PA005', hint = 'Call pgaudit_wf.attach_workflow() for it.';
    end if;
    place.target := workflow.target;
    place.row_id := substr(find_workflow.workflow_id, length(workflow.id_prefix) + 1);
    place.key_condition := pgaudit_wf.key_condition((select a from pgaudit_wf.attachment as a where a.target = workflow.target), 'w');
    place.nodes_column := workflow.nodes_column;
    place.edges_column := workflow.edges_column;
    place.name_column := workflow.name_column;
    place.description_column := workflow.description_column;
    return place;
end
$$;
comment on function pgaudit_wf.find_workflow(text, regclass) is 'Where a workflow lives; raises PA005 if no workflow table is attached.';

create function pgaudit_wf.newest_version(workflow_id text) returns integer
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select max(h.version) from pgaudit_wf.workflow_history as h where h.workflow_id = newest_version.workflow_id
$$;
comment on function pgaudit_wf.newest_version(text) is 'Number of a workflow''s newest version; null if it has none.';

create function pgaudit_wf.restore_workflow(workflow_id text, version integer, target regclass default null) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    workflow pgaudit_wf.workflow_place;
    kept jsonb;
    present_nodes jsonb;
    present_edges jsonb;
    present_name text;
    present_description text;
    found_rows integer;
begin
    workflow := pgaudit_wf.find_workflow(restore_workflow.workflow_id, restore_workflow.target);
    kept := pgaudit_wf.version_snapshot(restore_workflow.workflow_id, restore_workflow.version);
    -- The lock keeps a save that comes in between from being overwritten unseen.
    execute format('select w.%I::jsonb as nodes, w.%I::jsonb as edges, %s as name, %s as description from %s as w where %s for no key update',
            workflow.nodes_column, workflow.edges_column,
            pgaudit_wf.optional_column('w.%I::text', workflow.name_column, 'null::text'),
            pgaudit_wf.optional_column('w.%I::text', workflow.description_column, 'null::text'),
            workflow.target, workflow.key_condition)
        into present_nodes, present_edges, present_name, present_description using workflow.row_id;
    get diagnostics found_rows = row_count;
    if found_rows = 0 then
        raise exception 'workflow % is not there to be restored', restore_workflow.workflow_id
            using errcode = 'PA302', hint = 'It was deleted, or its organisation is not yours. The definition is in pgaudit_wf.version_snapshot().';
    end if;
    -- Older than the attachment of these columns: there is nothing to put back.
    if not kept ? 'name' then
        workflow.name_column := null;
    end if;
    if not kept ? 'description' then
        workflow.description_column := null;
    end if;
    if pgaudit_wf.same_definition(present_nodes, present_edges, kept -> 'nodes', kept -> 'edges')
        and (workflow.name_column is null or present_name is not distinct from kept ->> 'name')
        and (workflow.description_column is null or present_description is not distinct from kept ->> 'description')
    then
        return pgaudit_wf.newest_version(restore_workflow.workflow_id);
    end if;

    perform set_config('pgaudit_wf.restoring', restore_workflow.version::text, true);
    execute format('update %s as w set %I = $2, %I = $3%s%s where %s', workflow.target, workflow.nodes_column, workflow.edges_column,
            pgaudit_wf.optional_column(', %I = $4', workflow.name_column, ''), pgaudit_wf.optional_column(', %I = $5', workflow.description_column, ''),
            workflow.key_condition)
        using workflow.row_id, kept -> 'nodes', kept -> 'edges', kept ->> 'name', kept ->> 'description';
    perform set_config('pgaudit_wf.restoring', '', true);
    return pgaudit_wf.newest_version(restore_workflow.workflow_id);
end
$$;
comment on function pgaudit_wf.restore_workflow(text, integer, regclass) is
    'Puts a version of a workflow back (nodes, edges, name, description; visibility, enabled and the listing stay) by an ordinary update with the caller''s rights, and returns the number of the version that is current then. '
    'Putting back what is there changes nothing. target is needed only where two workflow tables share ids. Raises PA302 if there is no such workflow or version, or it is another organisation''s.';

-- sql/core/290_backfill_workflow.sql

-- Workflows that were there before their table was attached get their first version.

create function pgaudit_wf.backfill_workflows(
    target regclass, after_id text default null, batch_size integer default 100, out examined integer, out written integer, out last_id text,
    out refused jsonb)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment := (select a from pgaudit_wf.attachment as a where a.target = backfill_workflows.target);
    workflow pgaudit_wf.workflow_attachment := (select w from pgaudit_wf.workflow_attachment as w where w.target = backfill_workflows.target);
begin
    if workflow.target is null then
        raise exception '% is no attached workflow table', backfill_workflows.target
            using errcode = 'PA005', hint = 'Call pgaudit_wf.attach_workflow() for it first.';
    end if;
    if coalesce(backfill_workflows.batch_size, 0) < 1 then
        raise exception 'batch_size must be at least 1' using errcode = 'PA008';
    end if;
    examined := 0;
    written := 0;
    refused := '[]';
    last_id := backfill_workflows.after_id;
    for last_id in execute format(
        'select %1$s as id from %2$s as w where $1 is null or %3$s > $1%4$s order by %3$s limit $2',
        pgaudit_wf.key_expression(setting, 'w'), setting.target,
        case when cardinality(setting.id_columns) = 1 then format('w.%I', setting.id_columns[1]) else pgaudit_wf.key_expression(setting, 'w') end,
        case when cardinality(setting.id_columns) = 1 then (
            select '::' || format_type(atttypid, atttypmod) from pg_attribute where attrelid = setting.target and attname = setting.id_columns[1])
        else '' end) using backfill_workflows.after_id, backfill_workflows.batch_size
    loop
        examined := examined + 1;
        continue when pgaudit_wf.newest_version(workflow.id_prefix || last_id) is not null;
        -- One malformed workflow must not hold up all the others.
        begin
            written := written + pgaudit_wf.backfill_workflow(setting, workflow, last_id);
        exception
            when sqlstate 'PA201' or sqlstate 'PA202' or sqlstate 'PA203' then
                refused := refused || jsonb_build_object('workflow_id', workflow.id_prefix || last_id, 'message', sqlerrm);
        end;
    end loop;
end
$$;
comment on function pgaudit_wf.backfill_workflows(regclass, text, integer) is
    'Writes version 1 (source backfill) and a creation event (metadata.backfilled) for workflows that have no version yet: one batch, in the order of their ids, after after_id. '
    'Call it in a transaction of its own, with last_id as the next after_id, until examined is 0. Malformed ones, whose nodes are no array for instance, are left out and listed in refused ([{workflow_id, message}]). Safe to repeat and while the application writes. Raises PA005 for a table that is not attached.';

create function pgaudit_wf.backfill_workflow(setting pgaudit_wf.attachment, workflow pgaudit_wf.workflow_attachment, id text) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    snapshot jsonb;
    shown jsonb;
    org text;
    label text;
    key constant text := (workflow).id_prefix || backfill_workflow.id;
    natively pgaudit_wf.attachment := setting;
    hash text;
begin
    -- Outside a trigger there is no JSON row to read from, whatever the form.
    natively.form := 'compiled';
    -- The row lock makes a save by the application wait, or us wait for it: then it has written the first version itself.
    execute format('select %1$s as snapshot, %2$s as shown, %3$s as org, %4$s as label from %5$s as w where %6$s for no key update',
            pgaudit_wf.snapshot_expression(natively, workflow, 'w'), pgaudit_wf.row_expression(setting, 'w'),
            pgaudit_wf.optional_column('left(w.%I::text, 255)', (setting).org_column, 'null::text'),
            pgaudit_wf.optional_column('left(w.%I::text, 255)', (setting).label_column, 'null::text'),
            (setting).target, pgaudit_wf.key_condition(setting, 'w'))
        into snapshot, shown, org, label using backfill_workflow.id;
    if snapshot is null or pgaudit_wf.newest_version(key) is not null then
        return 0;
    end if;
    hash := pgaudit_wf.hash_definition(snapshot -> 'nodes', snapshot -> 'edges');
    insert into pgaudit_wf.workflow_history (workflow_id, version, org_id, source, snapshot, change, content_hash)
    values (key, 1, org, 'backfill', snapshot, pgaudit_wf.version_diff(null, snapshot), hash);
    insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
    values (org, (setting).resource_type || '.created', (setting).resource_type, backfill_workflow.id, true,
        jsonb_build_array(jsonb_build_object('op', 'add', 'path', '', 'value', shown || jsonb_build_object('content_hash', hash))),
        jsonb_strip_nulls(jsonb_build_object('backfilled', true, 'version', 1, 'label', label)));
    return 1;
end
$$;
comment on function pgaudit_wf.backfill_workflow(pgaudit_wf.attachment, pgaudit_wf.workflow_attachment, text) is
    'Writes version 1 and the creation event of one workflow, unless it has a version; returns how many were written.';

-- sql/core/300_reader.sql

-- Readers with a name: jobs that follow the log keep their place here.

create table pgaudit_wf.reader (
    name text primary key,
    cursor text,
    events bigint not null default 0,
    updated_at timestamptz not null default now(),
    constraint reader_name check (name ~ '^[a-z][a-z0-9_.-]{0,62}$')
);
comment on table pgaudit_wf.reader is 'Jobs that follow the log (alerts, seal, …), each with its place in it.';
comment on column pgaudit_wf.reader.name is 'Name of the job.';
comment on column pgaudit_wf.reader.cursor is 'Cursor of the last event it has dealt with, as read_log() gave it; null: it is at the beginning.';
comment on column pgaudit_wf.reader.events is 'Number of events it has dealt with.';
comment on column pgaudit_wf.reader.updated_at is 'When it last moved on.';

create function pgaudit_wf.read_as(reader_name text, max_events integer default 1000)
returns table (cursor text, event pgaudit_wf.security_audit_log)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    place pgaudit_wf.reader;
begin
    insert into pgaudit_wf.reader (name) values (read_as.reader_name) on conflict on constraint reader_pkey do nothing;
    -- Whoever holds the row has the turn: a second worker of the same name waits here until the first has committed.
    select r.* into place from pgaudit_wf.reader as r where r.name = read_as.reader_name for update;
    return query select l.cursor, l.event from pgaudit_wf.read_log(place.cursor, read_as.max_events) as l;
end
$$;
comment on function pgaudit_wf.read_as(text, integer) is
    'The next events for a named reader, as read_log() gives them. Deal with them and call advance_reader() in the same transaction: then none is skipped or dealt with twice, however many workers there are and wherever one is killed.';

create function pgaudit_wf.advance_reader(reader_name text, cursor text, events bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgaudit_wf.reader as r
    set cursor = advance_reader.cursor, events = r.events + advance_reader.events, updated_at = now()
    where r.name = advance_reader.reader_name;
    if not found then
        raise exception 'there is no reader "%"', advance_reader.reader_name using errcode = 'PA008', hint = 'Call pgaudit_wf.read_as() first.';
    end if;
    perform pgaudit_wf.note_generation();
end
$$;
comment on function pgaudit_wf.advance_reader(text, text, bigint) is
    'Saves a reader''s place: the cursor of the last event that it dealt with, and how many those were. Raises PA008 for an unknown reader.';

create function pgaudit_wf.reader_lag(reader_name text) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    place text := (select r.cursor from pgaudit_wf.reader as r where r.name = reader_lag.reader_name);
begin
    return (select count(*) from pgaudit_wf.read_log(place, 1000000));
end
$$;
comment on function pgaudit_wf.reader_lag(text) is 'How many events a reader is behind, counted up to 1,000,000.';

-- sql/core/310_alert.sql

-- Alerts: who is told of which events, and what became of each message.
--
-- Nothing here touches the write path: a worker (pgaudit-wf alerts run) follows the log as the reader "alerts", writes down in one
-- transaction who is to be told (enqueue_alerts), and then sends one message after the other (claim_alert, send, settle_alert).
-- A delivery is one event for one recipient over one channel, and there is only ever one. A message is one delivery or, in a burst,
-- a digest of many. It is put together when it is claimed and stays as it is from then on, so that a repeat can be told by its id.

create table pgaudit_wf.alert_rule (
    id bigint generated always as identity primary key,
    action_pattern text not null check (action_pattern <> ''),
    outcome pgaudit_wf.event_outcome default 'succeeded',
    org_id text,
    channel text not null default 'smtp' check (channel in ('smtp', 'webhook', 'log')),
    audience text not null default 'owners' check (audience in ('actor', 'owners', 'admins', 'address')),
    address text,
    person_column text not null default 'user_id',
    enabled boolean not null default true,
    created_at timestamptz not null default now(),
    constraint alert_rule_address_is_given check ((audience = 'address') = (address is not null)),
    constraint alert_rule_machine_has_an_address check (channel = 'smtp' or audience = 'address'),
    constraint alert_rule_address_fits_channel check (
        case channel
            when 'smtp' then address ~ '^[^[:space:][:cntrl:]@<>,;:"()\[\]\\]+@[^[:space:][:cntrl:]@<>,;:"()\[\]\\]+$' and length(address) <= 254
            when 'webhook' then address ~ '^(https://|http://(localhost|127\.0\.0\.1|\[::1\])[:/])[^[:space:][:cntrl:]@]+$'
            else address ~ '^[a-z0-9_.-]+$'
        end),
    constraint alert_rule_once unique nulls not distinct (action_pattern, outcome, org_id, channel, audience, address)
);
comment on table pgaudit_wf.alert_rule is
    'Who is told of which events. A rule is a row: insert one, switch it off with enabled. It speaks of events from created_at on.';
comment on column pgaudit_wf.alert_rule.id is 'Number of the rule.';
comment on column pgaudit_wf.alert_rule.action_pattern is 'The action, such as api_key.created; * stands for anything: api_key.*.';
comment on column pgaudit_wf.alert_rule.outcome is 'Only events with this outcome; null: any.';
comment on column pgaudit_wf.alert_rule.org_id is 'Only events of this organisation; null: all.';
comment on column pgaudit_wf.alert_rule.channel is 'smtp (e-mail), webhook or log (a line of the worker''s log).';
comment on column pgaudit_wf.alert_rule.audience is
    'actor (who did it), owners or admins (of the event''s organisation; where it has none, "owners" is the person whom the row belongs to, by person_column, or else the actor) or address. Webhook and log have an address only.';
comment on column pgaudit_wf.alert_rule.address is
    'E-mail address, webhook URL (https, without user name or secret in it) or name of a log stream, for the audience "address".';
comment on column pgaudit_wf.alert_rule.person_column is 'Column of the changed row that holds the id of the person it belongs to, for events without organisation.';
comment on column pgaudit_wf.alert_rule.enabled is 'False: the rule rests.';
comment on column pgaudit_wf.alert_rule.created_at is 'Events from before are not told of.';

insert into pgaudit_wf.alert_rule (action_pattern) values
    ('api_key.created'), ('api_key.revoked'), ('org_api_key.created'), ('org_api_key.revoked');

create table pgaudit_wf.alert_policy (
    is_only boolean primary key default true check (is_only),
    log_id uuid not null default gen_random_uuid(),
    burst_messages integer not null default 5 check (burst_messages >= 1),
    burst_window interval not null default '10 minutes' check (burst_window > '0 seconds'),
    max_attempts integer not null default 20 check (max_attempts >= 1),
    retry_base interval not null default '30 seconds' check (retry_base > '0 seconds'),
    retry_limit interval not null default '4 hours',
    lease interval not null default '5 minutes' check (lease > '0 seconds'),
    max_age interval not null default '7 days',
    keep interval not null default '90 days'
);
comment on table pgaudit_wf.alert_policy is 'How alerts are delivered: one row, for all workers alike.';
comment on column pgaudit_wf.alert_policy.is_only is 'Always true: there is one row.';
comment on column pgaudit_wf.alert_policy.log_id is 'Makes the ids of messages differ between two databases.';
comment on column pgaudit_wf.alert_policy.burst_messages is
    'So many e-mails a recipient gets within burst_window; what exceeds that comes as one digest, and the next digest when the window has passed.';
comment on column pgaudit_wf.alert_policy.burst_window is 'The window for burst_messages.';
comment on column pgaudit_wf.alert_policy.max_attempts is 'After so many attempts a delivery is dead.';
comment on column pgaudit_wf.alert_policy.retry_base is 'Pause after the first failure; it doubles with each further one, less up to a half at random.';
comment on column pgaudit_wf.alert_policy.retry_limit is 'The longest pause.';
comment on column pgaudit_wf.alert_policy.lease is
    'How long a worker may take for a message; then it is taken for gone, and another one sends the message. At least twice the worker''s send timeout.';
comment on column pgaudit_wf.alert_policy.max_age is 'Events that are older when a worker comes to them are not told of, as when the first worker starts late.';
comment on column pgaudit_wf.alert_policy.keep is 'How long sent and dead deliveries are kept.';
insert into pgaudit_wf.alert_policy default values;

create table pgaudit_wf.alert_delivery (
    id bigint generated always as identity primary key,
    event_tx_id bigint not null,
    event_id bigint not null,
    action text not null,
    rule_id bigint references pgaudit_wf.alert_rule on delete set null,
    channel text not null,
    recipient text not null,
    state text not null default 'pending' check (state in ('pending', 'sending', 'sent', 'dead', 'unaddressed')),
    attempts integer not null default 0,
    created_at timestamptz not null default now(),
    due_at timestamptz not null default now(),
    message bigint,
    started_at timestamptz,
    lease_until timestamptz,
    settled_at timestamptz,
    last_error text,
    constraint alert_delivery_once unique (event_tx_id, event_id, channel, recipient)
);
comment on table pgaudit_wf.alert_delivery is 'One event for one recipient over one channel, and what became of it.';
comment on column pgaudit_wf.alert_delivery.id is 'Number of the delivery.';
comment on column pgaudit_wf.alert_delivery.event_tx_id is 'Transaction of the event, by which it is found in the log.';
comment on column pgaudit_wf.alert_delivery.event_id is 'The event.';
comment on column pgaudit_wf.alert_delivery.action is 'What happened.';
comment on column pgaudit_wf.alert_delivery.rule_id is 'The rule because of which it is delivered; null when that is gone.';
comment on column pgaudit_wf.alert_delivery.channel is 'smtp, webhook or log.';
comment on column pgaudit_wf.alert_delivery.recipient is 'E-mail address in lower case, URL or log stream; empty when the rule found nobody.';
comment on column pgaudit_wf.alert_delivery.state is
    'pending (waits until due_at), sending (a worker has it until lease_until), sent, dead (given up; requeue_alert() revives it) or unaddressed (the rule found nobody with an e-mail address).';
comment on column pgaudit_wf.alert_delivery.attempts is 'How often sending was begun.';
comment on column pgaudit_wf.alert_delivery.created_at is 'When a worker came to the event.';
comment on column pgaudit_wf.alert_delivery.due_at is 'When it is to be sent, next or at the earliest.';
comment on column pgaudit_wf.alert_delivery.message is 'The message it is in: id of the message''s first delivery. Null until it is claimed.';
comment on column pgaudit_wf.alert_delivery.started_at is 'When its message was put together.';
comment on column pgaudit_wf.alert_delivery.lease_until is 'Until when the worker that sends it has it for itself.';
comment on column pgaudit_wf.alert_delivery.settled_at is 'When it was sent or given up.';
comment on column pgaudit_wf.alert_delivery.last_error is 'Why the last attempt failed: kind and code, never what the server quoted.';

create index alert_delivery_new on pgaudit_wf.alert_delivery (due_at, id) where state = 'pending' and message is null;
create index alert_delivery_new_recipient on pgaudit_wf.alert_delivery (recipient, channel, id) where state = 'pending' and message is null;
create index alert_delivery_retry on pgaudit_wf.alert_delivery (due_at) where state = 'pending' and message is not null;
create index alert_delivery_sending on pgaudit_wf.alert_delivery (lease_until) where state = 'sending';
create index alert_delivery_message on pgaudit_wf.alert_delivery (message) where message is not null;
create index alert_delivery_started on pgaudit_wf.alert_delivery (recipient, channel, started_at) where started_at is not null;
create index alert_delivery_settled on pgaudit_wf.alert_delivery (settled_at) where settled_at is not null;

create function pgaudit_wf.alert_rule_matches(rule pgaudit_wf.alert_rule, event pgaudit_wf.security_audit_log) returns boolean
language sql stable
as $$
    select (rule).enabled
        and ((rule).outcome is null or (rule).outcome = (event).outcome)
        and ((rule).org_id is null or (rule).org_id = (event).org_id)
        and (event).occurred_at >= (rule).created_at
        and (event).action like replace(replace(replace(replace((rule).action_pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%')
$$;
comment on function pgaudit_wf.alert_rule_matches(pgaudit_wf.alert_rule, pgaudit_wf.security_audit_log) is 'Whether a rule speaks of an event.';

create function pgaudit_wf.alert_person(event pgaudit_wf.security_audit_log, person_column text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    person text;
    target regclass;
begin
    select coalesce(op.value -> 'value' ->> alert_person.person_column, op.value -> 'old' ->> alert_person.person_column) into person
    from jsonb_array_elements(coalesce((alert_person.event).diff, '[]')) as op where op.value ->> 'path' = '';
    -- An update only names what changed.
    if person is null and (alert_person.event).captured and (alert_person.event).resource_id is not null then
        for target in select a.target from pgaudit_wf.attachment as a where a.resource_type = (alert_person.event).resource_type loop
            begin
                person := coalesce(person, pgaudit_wf.row_as_of(target, (alert_person.event).resource_id, (alert_person.event).occurred_at) ->> alert_person.person_column);
            exception
                -- One odd row must not hold up the alerts that come after it.
                when others then
                    raise warning 'cannot tell whom % % belongs to: %', (alert_person.event).resource_type, (alert_person.event).resource_id, sqlstate;
            end;
        end loop;
    end if;
    return coalesce(person, (alert_person.event).actor_id);
end
$$;
comment on function pgaudit_wf.alert_person(pgaudit_wf.security_audit_log, text) is
    'Id of the person whom the changed row belongs to, by the given column of it; else the actor.';

create function pgaudit_wf.alert_recipients(rule pgaudit_wf.alert_rule, event pgaudit_wf.security_audit_log) returns setof text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    actor_ids text[];
    reachable text[];
begin
    if (alert_recipients.rule).audience = 'address' then
        return next case (alert_recipients.rule).channel when 'smtp' then lower((alert_recipients.rule).address) else (alert_recipients.rule).address end;
        return;
    end if;
    if (alert_recipients.rule).audience = 'actor' then
        actor_ids := array[(alert_recipients.event).actor_id];
    elsif (alert_recipients.event).org_id is not null then
        select array_agg(m.actor_id) into actor_ids from pgaudit_wf.org_member as m
        where m.org_id = (alert_recipients.event).org_id
            and m.role = case (alert_recipients.rule).audience when 'owners' then 'owner' else 'admin' end;
    elsif (alert_recipients.rule).audience = 'owners' then
        -- A person's own key opens what his organisations let him do, so their owners hear of it too.
        select array_agg(whose.person) || array_agg(owner.actor_id) into actor_ids
        from (select pgaudit_wf.alert_person(alert_recipients.event, (alert_recipients.rule).person_column) as person) as whose
        left join pgaudit_wf.org_member as m on m.actor_id = whose.person
        left join pgaudit_wf.org_member as owner on owner.org_id = m.org_id and owner.role = 'owner';
    else
        return;
    end if;
    select array_agg(distinct lower(d.email)) into reachable from pgaudit_wf.actor_directory as d
    where d.actor_id = any (actor_ids)
        -- What is no plain address could smuggle in a header or a second recipient.
        and d.email ~ '^[^[:space:][:cntrl:]@<>,;:"()\[\]\\]+@[^[:space:][:cntrl:]@<>,;:"()\[\]\\]+$' and length(d.email) <= 254;
    if reachable is null and (alert_recipients.rule).audience <> 'admins' then
        return next '';
    end if;
    return query select unnest(reachable);
end
$$;
comment on function pgaudit_wf.alert_recipients(pgaudit_wf.alert_rule, pgaudit_wf.security_audit_log) is
    'Whom a rule tells of an event; an empty text if it should tell somebody and finds no address.';

create function pgaudit_wf.enqueue_alerts(max_events integer default 1000)
returns table (events bigint, deliveries bigint, unaddressed bigint, outdated bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    oldest constant timestamptz := now() - (select p.max_age from pgaudit_wf.alert_policy as p);
    place text;
begin
    with batch as materialized (
        select row_number() over () as number, r.cursor, r.event from pgaudit_wf.read_as('alerts', enqueue_alerts.max_events) as r
    ),
    matched as materialized (
        select b.event, rule from batch as b join pgaudit_wf.alert_rule as rule on pgaudit_wf.alert_rule_matches(rule, b.event)
    ),
    added as (
        insert into pgaudit_wf.alert_delivery (event_tx_id, event_id, action, rule_id, channel, recipient, state)
        select (m.event).tx_id, (m.event).id, (m.event).action, (m.rule).id, (m.rule).channel, told.recipient, case told.recipient when '' then 'unaddressed' else 'pending' end
        from matched as m, pgaudit_wf.alert_recipients(m.rule, m.event) as told (recipient)
        where (m.event).occurred_at >= oldest
        order by (m.event).tx_id, (m.event).id, (m.rule).id
        on conflict on constraint alert_delivery_once do nothing
        returning state
    )
    select
        (select count(*) from batch), (select b.cursor from batch as b order by b.number desc limit 1),
        (select count(*) from added as a where a.state = 'pending'), (select count(*) from added as a where a.state = 'unaddressed'),
        (select count(distinct (m.event).id) from matched as m where (m.event).occurred_at < oldest)
    into events, place, deliveries, unaddressed, outdated;
    if events > 0 then
        perform pgaudit_wf.advance_reader('alerts', place, events);
    end if;
    return next;
exception
    -- The only one that is left: the sequence of the deliveries lags behind the table.
    when unique_violation then
        raise exception 'no alert can be written down: %', sqlerrm
            using errcode = 'PA402',
                hint = 'The numbers of pgaudit_wf.alert_delivery lag behind, as after logical replication: '
                    'select setval(pg_get_serial_sequence(''pgaudit_wf.alert_delivery'', ''id''), (select max(id) from pgaudit_wf.alert_delivery));';
end
$$;
comment on function pgaudit_wf.enqueue_alerts(integer) is
    'Follows the log as the reader "alerts" and writes down who is to be told of the next events, at most max_events. Returns how many events it went through, how many deliveries came of them, for how many a rule found nobody, and how many matching events were older than max_age. '
    'Raises PA402, and moves on by no event, when the numbers of deliveries lag behind those in use.';

create function pgaudit_wf.alert_event(event pgaudit_wf.security_audit_log) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
    -- Never the diff, nor the rest of the metadata: a mailbox is no place for values. Names are cut, as a hundred events are one message.
    select jsonb_build_object(
        'id', (event).id,
        'occurred_at', to_char((event).occurred_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'action', (event).action, 'outcome', (event).outcome,
        'actor_id', (event).actor_id, 'actor_name', left(coalesce(d.name, (event).actor_label), 255), 'actor_email', left(d.email, 255),
        'db_user', (event).db_user, 'application_name', (event).application_name,
        'org_id', (event).org_id, 'org_label', (event).org_label,
        'resource_type', (event).resource_type, 'resource_id', (event).resource_id, 'resource_label', left((event).metadata ->> 'label', 255),
        'auth_method', (event).auth_method, 'ip', host((event).ip), 'country', (event).country,
        'user_agent', (event).user_agent, 'correlation_id', (event).correlation_id)
    from (values (1)) as one
    left join lateral (
        select a.name, a.email from pgaudit_wf.actor_directory as a where a.actor_id = (event).actor_id limit 1
    ) as d on true
$$;
comment on function pgaudit_wf.alert_event(pgaudit_wf.security_audit_log) is 'What a message may say of an event.';

create function pgaudit_wf.compose_alert(channels text[], policy pgaudit_wf.alert_policy) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    right_now constant timestamptz := clock_timestamp();
    next_one record;
    due bigint;
    recent record;
    is_digest boolean;
    part bigint[];
    new_message bigint;
begin
    loop
        select d.id, d.channel, d.recipient into next_one from pgaudit_wf.alert_delivery as d
        where d.state = 'pending' and d.message is null and d.due_at <= right_now and d.channel = any (compose_alert.channels)
        order by d.due_at, d.id limit 1;
        if next_one is null then
            return null;
        end if;
        is_digest := false;
        -- Programs take events one by one; people do not read fifty mails.
        if next_one.channel = 'smtp' then
            select count(distinct d.message) as messages, min(d.started_at) as first_at into recent from pgaudit_wf.alert_delivery as d
            where d.recipient = next_one.recipient and d.channel = next_one.channel and d.started_at > right_now - policy.burst_window;
            select count(*) into due from (
                select from pgaudit_wf.alert_delivery as d
                where d.recipient = next_one.recipient and d.channel = next_one.channel and d.state = 'pending' and d.message is null
                limit policy.burst_messages + 1) as waiting;
            if recent.messages > policy.burst_messages then
                update pgaudit_wf.alert_delivery as d set due_at = recent.first_at + policy.burst_window
                where d.recipient = next_one.recipient and d.channel = next_one.channel and d.state = 'pending' and d.message is null;
                continue;
            end if;
            is_digest := recent.messages + due > policy.burst_messages and due > 1;
        end if;
        if not is_digest then
            update pgaudit_wf.alert_delivery as d set message = d.id, started_at = right_now where d.id = next_one.id;
            return next_one.id;
        end if;
        select array_agg(p.id), min(p.id) into part, new_message from (
            select d.id from pgaudit_wf.alert_delivery as d
            where d.recipient = next_one.recipient and d.channel = next_one.channel and d.state = 'pending' and d.message is null
            order by d.id limit 1000) as p;
        update pgaudit_wf.alert_delivery as d set message = new_message, started_at = right_now where d.id = any (part);
        return new_message;
    end loop;
end
$$;
comment on function pgaudit_wf.compose_alert(text[], pgaudit_wf.alert_policy) is
    'Puts the next message together and returns its number; null if nothing is due. Part of claim_alert().';

create function pgaudit_wf.claim_alert(channels text[] default '{smtp,webhook,log}')
returns table (message bigint, attempt integer, channel text, recipient text, message_key text, events jsonb, deliveries bigint, lease_seconds double precision)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    policy pgaudit_wf.alert_policy;
    chosen bigint;
    right_now timestamptz;
begin
    -- Whoever holds the policy has the turn: it takes a millisecond, and makes the counts of a burst exact.
    select p.* into policy from pgaudit_wf.alert_policy as p for update;
    right_now := clock_timestamp();
    update pgaudit_wf.alert_delivery as d set state = 'dead', settled_at = right_now, lease_until = null, last_error = 'the worker ended during the last attempt'
    where d.state = 'sending' and d.lease_until < right_now and d.attempts >= policy.max_attempts;
    select d.message into chosen from pgaudit_wf.alert_delivery as d
    where d.state = 'sending' and d.lease_until < right_now and d.channel = any (claim_alert.channels)
    order by d.lease_until limit 1;
    if chosen is null then
        select d.message into chosen from pgaudit_wf.alert_delivery as d
        where d.state = 'pending' and d.message is not null and d.due_at <= right_now and d.channel = any (claim_alert.channels)
        order by d.due_at limit 1;
    end if;
    chosen := coalesce(chosen, pgaudit_wf.compose_alert(claim_alert.channels, policy));
    if chosen is null then
        return;
    end if;
    update pgaudit_wf.alert_delivery as d set state = 'sending', attempts = d.attempts + 1, lease_until = right_now + policy.lease
    where d.message = chosen and d.state in ('pending', 'sending');
    return query
        select chosen, max(d.attempts), min(d.channel), min(d.recipient),
            left(encode(sha256(convert_to(concat_ws('/', policy.log_id, min(d.channel), min(d.recipient), string_agg(concat_ws(':', d.event_tx_id, d.event_id), ',' order by d.event_tx_id, d.event_id)), 'UTF8')), 'hex'), 32),
            (select coalesce(jsonb_agg(shown.event order by shown.id), '[]') from (
                select s.id, pgaudit_wf.alert_event(l) as event
                from pgaudit_wf.alert_delivery as s
                join pgaudit_wf.security_audit_log as l on l.tx_id = s.event_tx_id and l.id = s.event_id
                where s.message = chosen and s.state = 'sending' order by s.id limit 100) as shown),
            count(*), extract(epoch from policy.lease)::double precision
        from pgaudit_wf.alert_delivery as d where d.message = chosen and d.state = 'sending';
end
$$;
comment on function pgaudit_wf.claim_alert(text[]) is
    'Takes the next message that is due for sending, for the time of the policy''s lease; no row: nothing is due. events are what it may tell (the first 100 of a digest of deliveries), message_key an id that a repeat has again. Report back with settle_alert(message, attempt, …).';

create function pgaudit_wf.settle_alert(message bigint, attempt integer, problem text default null, is_final boolean default false, retry_after interval default null)
returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    policy constant pgaudit_wf.alert_policy := (select p from pgaudit_wf.alert_policy as p);
    right_now constant timestamptz := clock_timestamp();
    pause constant interval := least(policy.retry_limit, policy.retry_base * power(2, least(settle_alert.attempt - 1, 30))) * (0.5 + random() / 2);
    outcome text := case
        when settle_alert.problem is null then 'sent'
        when settle_alert.is_final or settle_alert.attempt >= policy.max_attempts then 'dead'
        else 'pending'
    end;
begin
    update pgaudit_wf.alert_delivery as d
    set state = outcome, lease_until = null, last_error = left(settle_alert.problem, 200),
        settled_at = case when outcome <> 'pending' then right_now end,
        due_at = case when outcome = 'pending' then right_now + greatest(pause, case when settle_alert.retry_after > '1 day' then interval '1 day' else settle_alert.retry_after end) else d.due_at end
    where d.message = settle_alert.message and d.state = 'sending' and d.attempts = settle_alert.attempt;
    return case when found then outcome end;
end
$$;
comment on function pgaudit_wf.settle_alert(bigint, integer, text, boolean, interval) is
    'Says how the attempt to send a claimed message ended: well, or with a problem; then it is tried again after a pause that grows (at least retry_after), or is dead when that is final or was the last attempt. Returns the new state; null if the lease had run out and another worker has taken the message.';

create function pgaudit_wf.requeue_alert(delivery_id bigint default null) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    delivery pgaudit_wf.alert_delivery;
    requeued bigint := 0;
begin
    for delivery in
        select d.* from pgaudit_wf.alert_delivery as d
        where d.state in ('dead', 'unaddressed') and (requeue_alert.delivery_id is null or d.id = requeue_alert.delivery_id)
        order by d.id for update
    loop
        if delivery.state = 'dead' then
            update pgaudit_wf.alert_delivery as d
            set state = 'pending', attempts = 0, due_at = clock_timestamp(), message = null, started_at = null, settled_at = null
            where d.id = delivery.id;
        else
            -- Somebody may be there by now.
            insert into pgaudit_wf.alert_delivery (event_tx_id, event_id, action, rule_id, channel, recipient)
            select delivery.event_tx_id, delivery.event_id, delivery.action, delivery.rule_id, delivery.channel, told.recipient
            from pgaudit_wf.security_audit_log as l, pgaudit_wf.alert_rule as rule, pgaudit_wf.alert_recipients(rule, l) as told (recipient)
            where l.tx_id = delivery.event_tx_id and l.id = delivery.event_id and rule.id = delivery.rule_id and told.recipient <> ''
            on conflict on constraint alert_delivery_once do nothing;
            continue when not found;
            delete from pgaudit_wf.alert_delivery as d where d.id = delivery.id;
        end if;
        requeued := requeued + 1;
    end loop;
    if requeue_alert.delivery_id is not null and requeued = 0 then
        raise exception 'delivery % cannot be queued again', requeue_alert.delivery_id
            using errcode = 'PA401',
                hint = 'Only a dead delivery can, or an unaddressed one whose rule now finds an address: see pgaudit-wf alerts list.';
    end if;
    return requeued;
end
$$;
comment on function pgaudit_wf.requeue_alert(bigint) is
    'Queues a dead delivery again, or an unaddressed one if its rule finds somebody now; null: all of them. Several for one recipient come as a digest. Returns how many; raises PA401 if the one that was named cannot be.';

create function pgaudit_wf.prune_alerts() returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
    with gone as (
        delete from pgaudit_wf.alert_delivery as d
        using pgaudit_wf.alert_policy as p
        where d.settled_at < now() - p.keep or (d.state = 'unaddressed' and d.created_at < now() - p.keep)
        returning d.id
    )
    select count(*) from gone
$$;
comment on function pgaudit_wf.prune_alerts() is 'Removes deliveries that were sent or given up longer ago than the policy keeps them; returns how many.';

create function pgaudit_wf.alert_lag() returns bigint
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select count(*) from pgaudit_wf.read_log((select r.cursor from pgaudit_wf.reader as r where r.name = 'alerts'), 10000)
$$;
comment on function pgaudit_wf.alert_lag() is 'How many events the alerts are behind the log, counted up to 10,000.';

create function pgaudit_wf.grant_alerts(worker regrole) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('grant usage on schema pgaudit_wf to %s', grant_alerts.worker);
    execute format('grant select on pgaudit_wf.alert_rule, pgaudit_wf.alert_policy, pgaudit_wf.alert_delivery to %s', grant_alerts.worker);
    execute format('grant execute on function pgaudit_wf.enqueue_alerts(integer), pgaudit_wf.claim_alert(text[]),'
        ' pgaudit_wf.settle_alert(bigint, integer, text, boolean, interval), pgaudit_wf.requeue_alert(bigint),'
        ' pgaudit_wf.prune_alerts(), pgaudit_wf.alert_lag() to %s', grant_alerts.worker);
end
$$;
comment on function pgaudit_wf.grant_alerts(regrole) is
    'Lets a login run pgaudit-wf alerts and nothing else: it sees what messages may say, not the log.';

-- sql/core/320_attempt.sql

-- Attempts that came to nothing: failed and denied events, each recorded once however often it is sent.

create table pgaudit_wf.attempt (
    id uuid primary key,
    recorded_at timestamptz not null default now()
);
comment on table pgaudit_wf.attempt is
    'Attempts that have been recorded by record_attempt(), so that one whose commit was in doubt, or that is read from a spool file again, makes no second event.';
comment on column pgaudit_wf.attempt.id is 'Id that the client gave to the attempt.';
comment on column pgaudit_wf.attempt.recorded_at is 'When it was recorded.';

create function pgaudit_wf.record_denied(
    action text,
    resource_type text default null,
    resource_id text default null,
    metadata jsonb default null
) returns bigint
language sql
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.record_event(
        action => record_denied.action, resource_type => record_denied.resource_type, resource_id => record_denied.resource_id,
        metadata => record_denied.metadata, outcome => 'denied')
$$;
comment on function pgaudit_wf.record_denied(text, text, text, jsonb) is
    'Records an attempt that was refused, in the current transaction, which must be committed: rolled back, it takes the event with it. Returns the event''s id; raises PA008 on a wrong argument.';

create function pgaudit_wf.record_attempt(entry jsonb) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    field text;
begin
    if entry ->> 'outcome' is null or entry ->> 'outcome' not in ('failed', 'denied') then
        raise exception 'outcome is "%": that of an attempt is failed or denied', entry ->> 'outcome' using errcode = 'PA008';
    end if;
    if entry ->> 'id' is null or entry ->> 'id' !~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
        raise exception 'an attempt needs an id, a UUID, by which it is recorded once' using errcode = 'PA008';
    end if;
    -- Waits for another transaction that is recording the same attempt right now.
    insert into pgaudit_wf.attempt (id) values ((entry ->> 'id')::uuid) on conflict on constraint attempt_pkey do nothing;
    if not found then
        return null;
    end if;
    foreach field in array array['actor_id', 'actor_label', 'org_id', 'org_label', 'auth_method', 'api_key_id', 'ip', 'country', 'user_agent', 'correlation_id', 'reason', 'attestation'] loop
        perform set_config('app.' || field, coalesce(entry -> 'context' ->> field, ''), true);
    end loop;
    -- Cut, where record_event() would refuse: an attempt that was spooled is not to be lost for a name.
    return pgaudit_wf.record_event(
        action => left(entry ->> 'action', 128), resource_type => left(entry ->> 'resource_type', 128), resource_id => entry ->> 'resource_id',
        metadata => coalesce(nullif(entry -> 'metadata', 'null'), '{}') || jsonb_strip_nulls(jsonb_build_object('attempted_at', entry -> 'attempted_at')),
        outcome => entry ->> 'outcome');
end
$$;
comment on function pgaudit_wf.record_attempt(jsonb) is
    'Records a failed or denied attempt: {id, action, outcome, resource_type, resource_id, metadata, context, attempted_at}, where context ({actor_id, org_id, …}) becomes the transaction''s and attempted_at is given when it was not just now. '
    'Returns the event''s id; null if an attempt of that id was recorded before. Raises PA008 on a wrong argument.';

-- sql/core/330_org_limit.sql

-- Limits: how many rows of a kind an organisation may have. A counter for each organisation and type is kept by statement
-- triggers, which only tables whose type has a limit have.

create table pgaudit_wf.org_limit (
    id bigint generated always as identity primary key,
    org_id text,
    resource_type text not null,
    max_count bigint,
    constraint org_limit_key unique nulls not distinct (org_id, resource_type),
    constraint org_limit_max_count check (max_count >= 0),
    constraint org_limit_default check (org_id is not null or max_count is not null),
    constraint org_limit_org_id check (org_id <> '' and length(org_id) <= 255),
    constraint org_limit_resource_type check (resource_type <> '')
);
comment on table pgaudit_wf.org_limit is
    'How many rows of a resource type an organisation may have; takes effect at once on attached tables of that type: the statement that goes over is refused with PA330. Lowering a limit below what is there refuses new rows only.';
comment on column pgaudit_wf.org_limit.id is 'Number of the limit.';
comment on column pgaudit_wf.org_limit.org_id is 'The organisation; null: all that have no limit of their own.';
comment on column pgaudit_wf.org_limit.resource_type is 'Resource type of the attached tables, as given to attach().';
comment on column pgaudit_wf.org_limit.max_count is 'How many there may be; null: as many as it likes, whatever the default is.';

create table pgaudit_wf.limit_condition (
    resource_type text primary key,
    condition text not null,
    constraint limit_condition_condition check (condition <> '')
);
comment on table pgaudit_wf.limit_condition is
    'Which rows of a resource type take a place, where not all do: a row for which the condition ceases to hold (a key that is revoked) frees its place.';
comment on column pgaudit_wf.limit_condition.resource_type is 'Resource type of the attached tables.';
comment on column pgaudit_wf.limit_condition.condition is
    'Boolean SQL expression over the row''s columns, such as revoked_at is null; immutable, as a count cannot follow the clock. Functions outside pg_catalog need their schema.';

-- Room on the page, so that counting up makes no index entries.
create table pgaudit_wf.org_usage (
    org_id text not null,
    resource_type text not null,
    used bigint not null,
    primary key (org_id, resource_type)
) with (fillfactor = 50);
comment on table pgaudit_wf.org_usage is
    'How many rows that take a place each organisation has, for resource types that have a limit; written by triggers only. recount_usage() counts anew.';
comment on column pgaudit_wf.org_usage.org_id is 'The organisation.';
comment on column pgaudit_wf.org_usage.resource_type is 'The resource type.';
comment on column pgaudit_wf.org_usage.used is 'Rows that take a place.';

create table pgaudit_wf.limit_target (
    target regclass primary key,
    resource_type text not null,
    org_column text not null,
    condition text not null,
    condition_columns text[] not null,
    aliases jsonb not null,
    function_name text not null unique,
    basis jsonb not null,
    stale_since timestamptz
);
comment on table pgaudit_wf.limit_target is 'Tables that are counted; written by install_limit() only.';
comment on column pgaudit_wf.limit_target.target is 'The table.';
comment on column pgaudit_wf.limit_target.resource_type is 'Its resource type.';
comment on column pgaudit_wf.limit_target.org_column is 'Column with the organisation, by its alias; rows without one take no place.';
comment on column pgaudit_wf.limit_target.condition is 'Condition for a row to take a place, as PostgreSQL writes it, over the aliases of the columns.';
comment on column pgaudit_wf.limit_target.condition_columns is 'Aliases of the columns that the condition names.';
comment on column pgaudit_wf.limit_target.aliases is 'The columns'' names when the condition was compiled, by what they are called now ({name: alias}): so a renamed column is counted as before.';
comment on column pgaudit_wf.limit_target.function_name is 'Trigger function in schema pgaudit_wf.';
comment on column pgaudit_wf.limit_target.basis is 'What the count rests on: number of the org column, types of the columns by alias, relations that hold the rows.';
comment on column pgaudit_wf.limit_target.stale_since is 'Since when DDL may have made the count wrong that could not be counted anew there and then; recount_usage() does.';

alter table pgaudit_wf.org_limit enable row level security;
create policy readable_org on pgaudit_wf.org_limit for select using (org_id is null or org_id = (select pgaudit_wf.readable_org()));
alter table pgaudit_wf.org_usage enable row level security;
create policy readable_org on pgaudit_wf.org_usage for select using (org_id = (select pgaudit_wf.readable_org()));

create function pgaudit_wf.limit_of(org_id text, resource_type text) returns bigint
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select max_count from pgaudit_wf.org_limit as l
    where l.resource_type = limit_of.resource_type and (l.org_id = limit_of.org_id or l.org_id is null)
    order by l.org_id nulls last limit 1
$$;
comment on function pgaudit_wf.limit_of(text, text) is 'How many rows of a resource type an organisation may have: its own limit, else the default; null: any number.';

create view pgaudit_wf.limit_usage with (security_invoker = true) as
select
    known.org_id,
    known.resource_type,
    coalesce(u.used, 0) as used,
    pgaudit_wf.limit_of(known.org_id, known.resource_type) as max_count,
    not exists (select from pgaudit_wf.org_limit as l where l.org_id = known.org_id and l.resource_type = known.resource_type) as is_default
from (
    select counted.org_id, counted.resource_type from pgaudit_wf.org_usage as counted
    union
    select l.org_id, l.resource_type from pgaudit_wf.org_limit as l where l.org_id is not null
) as known
left join pgaudit_wf.org_usage as u on u.org_id = known.org_id and u.resource_type = known.resource_type;
comment on view pgaudit_wf.limit_usage is 'How much of its limits each organisation has used. Owners and admins see their own organisation, as reader.';
comment on column pgaudit_wf.limit_usage.org_id is 'The organisation.';
comment on column pgaudit_wf.limit_usage.resource_type is 'The resource type.';
comment on column pgaudit_wf.limit_usage.used is 'Rows that take a place now.';
comment on column pgaudit_wf.limit_usage.max_count is 'How many there may be; null: any number.';
comment on column pgaudit_wf.limit_usage.is_default is 'True when the limit is the default for all organisations.';

create function pgaudit_wf.compile_limit_condition(target regclass, resource_type text, out condition text, out condition_columns text[])
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    written constant text := (select c.condition from pgaudit_wf.limit_condition as c where c.resource_type = compile_limit_condition.resource_type);
begin
    condition := 'true';
    condition_columns := '{}';
    if written is null then
        return;
    end if;
    -- As the predicate of an index PostgreSQL itself checks the condition (boolean, immutable, no subquery), writes it out unambiguously
    -- and says what it depends on. The copy of the table has no rows.
    execute format('create temporary table pgaudit_wf_limit (like %s)', compile_limit_condition.target);
    execute format(e'create index pgaudit_wf_limit_condition on pg_temp.pgaudit_wf_limit ((1)) where (%s\n)', written);
    select pg_get_expr(indpred, indrelid) into strict condition
    from pg_index where indexrelid = to_regclass('pg_temp.pgaudit_wf_limit_condition');
    condition_columns := array(
        select attname::text from pg_depend join pg_attribute on attrelid = refobjid and attnum = refobjsubid
        where classid = 'pg_class'::regclass and objid = to_regclass('pg_temp.pgaudit_wf_limit_condition')
            and refclassid = 'pg_class'::regclass and refobjid = to_regclass('pg_temp.pgaudit_wf_limit') order by attnum);
    drop table pg_temp.pgaudit_wf_limit;
exception
    when others then
        raise exception 'the limit condition of % does not compile for %: %',
            compile_limit_condition.resource_type, compile_limit_condition.target, sqlerrm
            using errcode = 'PA003',
                detail = format('The condition is: %s', written),
                hint = 'It is a boolean expression over the columns of the row, without subqueries and without what changes by itself, such as now(); name functions and types outside pg_catalog with their schema.';
end
$$;
comment on function pgaudit_wf.compile_limit_condition(regclass, text) is
    'The limit condition of a resource type as PostgreSQL writes it, and the columns that it names; raises PA003 if it is no immutable boolean expression over a row of the table.';

create function pgaudit_wf.counted_alias(limited pgaudit_wf.limit_target) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Where nobody says what became of a column, its name has to do. A column that came later could have the name by which another one
    -- is known.
    select case when (select a.form from pgaudit_wf.attachment as a where a.target = (limited).target) = 'generic' then 'r' else format('r (%s)', string_agg(quote_ident(coalesce((limited).aliases ->> attname,
            case when exists (select from jsonb_each_text((limited).aliases) as taken where taken.value = attname) then '!' || attnum else attname end)),
        ', ' order by attnum)) end
    from pg_attribute where attrelid = (limited).target and attnum > 0 and not attisdropped
$$;
comment on function pgaudit_wf.counted_alias(pgaudit_wf.limit_target) is 'Alias for the rows of a counted table, with its columns under the names that its condition knows them by.';

create function pgaudit_wf.check_limit_casts(limited pgaudit_wf.limit_target) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    name text;
begin
    if (select relkind from pg_class where oid = (limited).target) not in ('r', 'p') then
        raise exception '% is not a table any more', (limited).target using errcode = 'PA004';
    end if;
    select casts.name into name from unnest(pgaudit_wf.columns_with_casts((limited).target)) as casts (name)
    where (limited).aliases ->> casts.name = any ((limited).condition_columns) limit 1;
    if found then
        raise exception 'the limit condition of % names column "%" of %, whose type has a cast of somebody''s: it would be run with our rights',
            (limited).resource_type, name, (limited).target
            using errcode = 'PA003', hint = 'Drop the cast, or let the condition name another column.';
    end if;
end
$$;
comment on function pgaudit_wf.check_limit_casts(pgaudit_wf.limit_target) is
    'Raises PA003 where the condition of a counted table could run somebody''s code, PA004 where the table has become something else.';

create function pgaudit_wf.count_usage(limited pgaudit_wf.limit_target) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
-- Rather an error than somebody's policy, run by us, or a count of part of the rows.
set row_security = off
as $$
begin
    perform pgaudit_wf.check_limit_casts(limited);
    execute format(
        'insert into pgaudit_wf.org_usage as u (org_id, resource_type, used)'
        ' select left(%1$s, 255), $1, count(*) from %2$s as %3$s where %4$I is not null and %5$s group by 1'
        ' on conflict on constraint org_usage_pkey do update set used = u.used + excluded.used',
        pgaudit_wf.limit_org_expression(limited, 'r'),
        -- Of an inheriting table, the rows are its own.
        case when (select relkind from pg_class where oid = (limited).target) = 'p' then '' else 'only ' end || (limited).target::text,
        pgaudit_wf.counted_alias(limited), (limited).org_column, (limited).condition) using (limited).resource_type;
    update pgaudit_wf.limit_target as t set stale_since = null where t.target = (limited).target;
end
$$;
comment on function pgaudit_wf.count_usage(pgaudit_wf.limit_target) is 'Adds the rows of a counted table that take a place to its organizations'' counters.';

create function pgaudit_wf.recount_usage(resource_type text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    counted pgaudit_wf.limit_target;
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception 'rows cannot be counted in a % transaction, which does not see what others committed since it began', current_setting('transaction_isolation')
            using errcode = 'PA008', hint = 'Do it in a read committed transaction.';
    end if;
    -- Whoever writes has the table's lock until he commits, so nobody holds a counter once we have all of them.
    for counted in select t.* from pgaudit_wf.limit_target as t where t.resource_type = recount_usage.resource_type order by t.target::oid loop
        execute format('lock table %s in share row exclusive mode', counted.target);
    end loop;
    delete from pgaudit_wf.org_usage as u where u.resource_type = recount_usage.resource_type;
    perform pgaudit_wf.count_usage(t) from pgaudit_wf.limit_target as t where t.resource_type = recount_usage.resource_type;
end
$$;
comment on function pgaudit_wf.recount_usage(text) is
    'Counts the rows of a resource type anew, while its tables are locked against writing. For when triggers were switched off or data was restored beside them. Raises PA008 unless read committed.';

create function pgaudit_wf.recount_after_ddl(resource_type text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Without a lock, which only the tables' owners may take: the DDL has its own. A counter that another transaction has raised and
    -- not committed makes the delete wait for it, and one that it raises later is raised on top of ours.
    delete from pgaudit_wf.org_usage as u where u.resource_type = recount_after_ddl.resource_type;
    perform pgaudit_wf.count_usage(t) from pgaudit_wf.limit_target as t where t.resource_type = recount_after_ddl.resource_type;
exception
    -- Whatever stands in the way of counting does not stand in the way of the DDL.
    when others then
        update pgaudit_wf.limit_target as t set stale_since = coalesce(t.stale_since, now()) where t.resource_type = recount_after_ddl.resource_type;
        raise warning 'the rows of % could not be counted after this change (%)', recount_after_ddl.resource_type, sqlerrm
            using hint = format('Count them as the tables'' owner: select pgaudit_wf.recount_usage(%L);', recount_after_ddl.resource_type);
end
$$;
comment on function pgaudit_wf.recount_after_ddl(text) is
    'Counts the rows of a resource type anew after DDL that changed which rows there are; marks the count as stale where it cannot.';

create function pgaudit_wf.count_truncated(resource_type text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if (select sum(jsonb_array_length(t.basis -> 'relations')) from pgaudit_wf.limit_target as t where t.resource_type = count_truncated.resource_type) = 1 then
        delete from pgaudit_wf.org_usage as u where u.resource_type = count_truncated.resource_type;
    else
        perform pgaudit_wf.recount_after_ddl(count_truncated.resource_type);
    end if;
end
$$;
comment on function pgaudit_wf.count_truncated(text) is 'Counts what is left of a resource type after one of its tables was emptied.';

create function pgaudit_wf.limit_org_expression(limited pgaudit_wf.limit_target, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.text_expression(atttypid, format('%I.%I', record_name, (limited).org_column))
    from pg_attribute
    where attrelid = (limited).target and attnum > 0 and not attisdropped and (limited).aliases ->> attname = (limited).org_column
$$;
comment on function pgaudit_wf.limit_org_expression(pgaudit_wf.limit_target, text) is
    'SQL expression for the organization of a counted row; null where the column is gone.';

create function pgaudit_wf.moved_rows(limited pgaudit_wf.limit_target, op text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case op
        when 'insert' then format('select left(%1$s, 255) as org_id, count(*) as change from new_rows as %4$s where %2$I is not null and %3$s group by 1', org, (limited).org_column, (limited).condition, alias)
        when 'delete' then format('select left(%1$s, 255) as org_id, -count(*) as change from old_rows as %4$s where %2$I is not null and %3$s group by 1', org, (limited).org_column, (limited).condition, alias)
        else format(
            e'select org_id, sum(change)::bigint as change from ('
            '\n                select left(%1$s, 255) as org_id, -1 as change from old_rows as %4$s where %2$I is not null and %3$s'
            '\n                union all'
            '\n                select left(%1$s, 255), 1 from new_rows as %4$s where %2$I is not null and %3$s'
            '\n            ) as row_change group by org_id having sum(change) <> 0', org, (limited).org_column, (limited).condition, alias)
    end
    from (select pgaudit_wf.limit_org_expression(limited, 'r') as org, pgaudit_wf.counted_alias(limited) as alias) as names
$$;
comment on function pgaudit_wf.moved_rows(pgaudit_wf.limit_target, text) is 'Query for how many places each organisation takes (or frees) by a statement.';

create function pgaudit_wf.limit_body(limited pgaudit_wf.limit_target) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    statements text := '';
    op text;
begin
    begin
        perform pgaudit_wf.check_limit_casts(limited);
    exception
        when sqlstate 'PA003' then
            return format(e'\nbegin\n    raise warning ''rows of %% are not being counted: its limit condition names a column with a cast'', %L;\n    return null;\nend\n', (limited).resource_type);
    end;
    if pgaudit_wf.limit_org_expression(limited, 'r') is null then
        return format(e'\nbegin\n    raise warning ''rows of %% are not being counted: the column that says whose they are is gone'', %L\n'
            '        using hint = ''Attach the table again with another org_column: pgaudit_wf.doctor() says how.'';\n    return null;\nend\n', (limited).resource_type);
    end if;
    foreach op in array array['insert', 'update', 'delete'] loop
        statements := statements || format($branch$
        %1$s tg_op = %2$L then
            with moved as materialized (
                %3$s
            ), counted as (
                insert into pgaudit_wf.org_usage as u (org_id, resource_type, used)
                select moved.org_id, %4$L, moved.change from moved order by moved.org_id
                on conflict on constraint org_usage_pkey do update set used = u.used + excluded.used
                returning u.org_id, u.used
            )
            select counted.org_id, own.max_count into refused_org, maximum
            from counted,
            lateral (
                select l.max_count from pgaudit_wf.org_limit as l
                where l.resource_type = %4$L and (l.org_id = counted.org_id or l.org_id is null)
                order by l.org_id nulls last limit 1
            ) as own
            where %5$s
            order by 1 limit 1;$branch$,
            case op when 'insert' then 'if' else 'elsif' end, upper(op),
            pgaudit_wf.moved_rows(limited, op), (limited).resource_type,
            case op
                when 'insert' then 'counted.used > own.max_count'
                -- Asked for those over the limit only: whose places became fewer is not to be refused.
                when 'update' then 'counted.used > own.max_count and (select moved.change from moved where moved.org_id = counted.org_id) > 0'
                -- Who frees places is never over.
                else 'false'
            end);
    end loop;
    return format($body$
-- Counts the rows of an attached table that take a place and refuses those over the limit; written because of pgaudit_wf.org_limit.
-- The counters are locked in the order of their organisations, so that two statements never wait for each other.
#variable_conflict use_column
declare
    refused_org text;
    maximum bigint;
begin%3$s
    begin%4$s%1$s
        else
            perform pgaudit_wf.count_truncated(%2$L);
        end if;
    exception
        -- What the condition names was renamed or dropped meanwhile, and that must not fail the write.
        when syntax_error_or_access_rule_violation or invalid_text_representation or invalid_schema_name or sqlstate 'PA003' then
            raise warning 'rows of %% are not being counted (SQLSTATE %%)', %2$L, sqlstate
                using hint = 'Mend pgaudit_wf.limit_condition and attach the table again: pgaudit_wf.doctor() says how.';
            return null;
    end;
    if refused_org is not null then
        raise exception 'organisation %% has reached its limit of %% for %%', refused_org, maximum, %2$L
            using errcode = 'PA330', schema = tg_table_schema, table = tg_table_name,
                detail = jsonb_build_object('org_id', refused_org, 'resource_type', %2$L, 'max_count', maximum)::text,
                hint = 'Delete or revoke one first, or raise the limit in pgaudit_wf.org_limit.';
    end if;
    return null;
end
$body$, statements, (limited).resource_type, pgaudit_wf.check_place((limited).target, (limited).function_name),
        case when (select a.form from pgaudit_wf.attachment as a where a.target = (limited).target) = 'generic'
            then format(e'\n        perform pgaudit_wf.refuse_casts(tg_relid, %L);', (limited).condition) else '' end);
end
$$;
comment on function pgaudit_wf.limit_body(pgaudit_wf.limit_target) is 'The body of the trigger function that counts the rows of a table.';

create function pgaudit_wf.limit_basis(limited pgaudit_wf.limit_target) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'org', (limited).org_column,
        'relations', (select coalesce(jsonb_agg(leaf::oid::bigint order by leaf::oid), '[]') from pgaudit_wf.leaf_tables((limited).target) as leaf),
        'types', (
            select jsonb_object_agg(alias.value, format_type(atttypid, atttypmod))
            from jsonb_each_text((limited).aliases) as alias join pg_attribute on attrelid = (limited).target and attname = alias.key and not attisdropped
            where alias.value = (limited).org_column or alias.value = any ((limited).condition_columns)))
$$;
comment on function pgaudit_wf.limit_basis(pgaudit_wf.limit_target) is 'What the count of a table rests on now: limit_target.basis.';

create function pgaudit_wf.must_recount(before jsonb, after jsonb) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select before is null or before -> 'org' <> after -> 'org' or before -> 'types' is distinct from after -> 'types'
        or not before -> 'relations' <@ (after -> 'relations')
        -- A new partition is empty, as a rule, and an old table not worth reading for it.
        or exists (
            select from jsonb_array_elements(after -> 'relations') as relation
            where not before -> 'relations' @> relation and pg_relation_size(relation::bigint::oid::regclass) > 0)
$$;
comment on function pgaudit_wf.must_recount(jsonb, jsonb) is 'Whether a count that rests on one basis does not hold on another: limit_target.basis before and after DDL.';

create function pgaudit_wf.place_limit(setting pgaudit_wf.attachment, recount boolean default false) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    known pgaudit_wf.limit_target;
    limited pgaudit_wf.limit_target;
    relation regclass;
begin
    -- Limits of the type come and go in other transactions too.
    perform pg_advisory_xact_lock(hashtext('pgaudit_wf.org_limit'), hashtext((setting).resource_type));
    select * into known from pgaudit_wf.limit_target as t where t.target = (setting).target;
    if not exists (select from pgaudit_wf.org_limit as l where l.resource_type = (setting).resource_type) then
        if known.target is not null then
            perform pgaudit_wf.uninstall_limit((setting).target);
        end if;
        return;
    end if;
    if (setting).org_column is null or (setting).org_column <> all ((setting).columns) then
        raise exception '% has a limit for each organisation, and % has no column that says whose a row is', (setting).resource_type, (setting).target
            using errcode = 'PA002', hint = format('Attach the table with its org_column, or delete the limits of %s from pgaudit_wf.org_limit.', (setting).resource_type);
    end if;
    if not pg_has_role((select relowner from pg_class where oid = (setting).target), 'usage') then
        raise exception 'the rows of % have not been counted so far, and % may not start it: it does not own the table', (setting).target, current_user
            using errcode = 'PA331', hint = format('Have the table''s owner, who must be allowed to write pgaudit_wf.org_limit, or a superuser set the first limit of %s.', (setting).resource_type);
    end if;

    limited.target := (setting).target;
    limited.resource_type := (setting).resource_type;
    limited.org_column := (setting).org_column;
    select c.condition, c.condition_columns into limited.condition, limited.condition_columns
    from pgaudit_wf.compile_limit_condition((setting).target, (setting).resource_type) as c;
    limited.aliases := (select jsonb_object_agg(name, name) from unnest((setting).columns) as name);
    perform pgaudit_wf.check_limit_casts(limited);
    limited.function_name := 'limit_' || substr((setting).function_name, length('capture_') + 1);
    limited.basis := pgaudit_wf.limit_basis(limited);
    delete from pgaudit_wf.limit_target as t where t.target = (setting).target;
    insert into pgaudit_wf.limit_target select limited.*;
    perform pgaudit_wf.write_functions(setting);

    -- After DDL the owner of our schema counts anew: what the triggers see of each row, it may then read.
    perform pgaudit_wf.let_owner_read(limited.target, limited.org_column || limited.condition_columns);
    -- A statement trigger fires for the table that the statement names, which may be any partition.
    for relation in
        select tree.relid from (select limited.target as relid union select relid from pg_partition_tree(limited.target)) as tree
        join pg_class as c on c.oid = tree.relid where c.relkind <> 'f' order by 1
    loop
        execute format('create or replace trigger pgaudit_wf_limit_insert after insert on %s referencing new table as new_rows for each statement execute function pgaudit_wf.%I()', relation, limited.function_name);
        execute format('create or replace trigger pgaudit_wf_limit_update after update on %s referencing old table as old_rows new table as new_rows for each statement execute function pgaudit_wf.%I()', relation, limited.function_name);
        execute format('create or replace trigger pgaudit_wf_limit_delete after delete on %s referencing old table as old_rows for each statement execute function pgaudit_wf.%I()', relation, limited.function_name);
    end loop;
    for relation in select l from pgaudit_wf.leaf_tables(limited.target) as l join pg_class as c on c.oid = l where c.relkind <> 'f' loop
        execute format('create or replace trigger pgaudit_wf_limit_truncate after truncate on %s for each statement execute function pgaudit_wf.%I()', relation, limited.function_name);
    end loop;
    perform pgaudit_wf.drop_limit_triggers(limited.function_name, limited.target);
    if known.resource_type <> limited.resource_type then
        perform pgaudit_wf.recount_usage(known.resource_type);
    end if;
    if recount or known.resource_type <> limited.resource_type or known.stale_since is not null or known.condition is distinct from limited.condition
        or pgaudit_wf.must_recount(known.basis, limited.basis)
    then
        perform pgaudit_wf.recount_usage(limited.resource_type);
    end if;
end
$$;
comment on function pgaudit_wf.place_limit(pgaudit_wf.attachment, boolean) is
    'Has the rows of an attached table counted if its resource type has a limit, and not counted otherwise, with the rights of the caller, who must own it. Raises PA002 if it has no org column, PA003 if the condition does not compile, PA331 if the caller does not own the table.';

create function pgaudit_wf.follow_limit(setting pgaudit_wf.attachment, renames jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    limited pgaudit_wf.limit_target;
    basis_now jsonb;
begin
    select * into limited from pgaudit_wf.limit_target as t where t.target = (setting).target;
    if not found then
        return;
    end if;
    limited.aliases := (
        select coalesce(jsonb_object_agg(pgaudit_wf.renamed(alias.key, renames), alias.value), '{}') from jsonb_each(limited.aliases) as alias
        where pgaudit_wf.renamed(alias.key, renames) = any (pgaudit_wf.column_names(limited.target)));
    basis_now := pgaudit_wf.limit_basis(limited);
    update pgaudit_wf.limit_target as t set aliases = limited.aliases, basis = basis_now where t.target = limited.target;
    if pgaudit_wf.must_recount(limited.basis, basis_now) then
        perform pgaudit_wf.recount_after_ddl(limited.resource_type);
    end if;
end
$$;
comment on function pgaudit_wf.follow_limit(pgaudit_wf.attachment, jsonb) is
    'After DDL: has a counted table''s columns known by their new names ({old: new}), and its rows counted anew where others are there now.';

create function pgaudit_wf.drop_limit_triggers(function_name text, keep_for regclass default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    installed record;
begin
    for installed in
        select tgname as name, tgrelid::regclass as relation from pg_trigger
        where tgfoid = to_regprocedure(format('pgaudit_wf.%I()', drop_limit_triggers.function_name))
            and (drop_limit_triggers.keep_for is null
                or (tgrelid <> drop_limit_triggers.keep_for and tgrelid not in (select relid from pg_partition_tree(drop_limit_triggers.keep_for))))
    loop
        execute format('drop trigger %I on %s', installed.name, installed.relation);
    end loop;
end
$$;
comment on function pgaudit_wf.drop_limit_triggers(text, regclass) is 'Drops the triggers that count rows by a function, but those of the given table and its partitions.';

create function pgaudit_wf.uninstall_limit(target regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    known pgaudit_wf.limit_target;
begin
    delete from pgaudit_wf.limit_target as t where t.target = uninstall_limit.target returning t.* into known;
    if not found then
        return;
    end if;
    perform pgaudit_wf.drop_functions(array[known.function_name]);
    if exists (select from pgaudit_wf.limit_target as t where t.resource_type = known.resource_type) then
        perform pgaudit_wf.recount_after_ddl(known.resource_type);
    else
        delete from pgaudit_wf.org_usage as u where u.resource_type = known.resource_type;
    end if;
end
$$;
comment on function pgaudit_wf.uninstall_limit(regclass) is 'No longer counts the rows of a table.';

create function pgaudit_wf.apply_org_limit() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    type text;
    setting pgaudit_wf.attachment;
    counted regclass;
begin
    for type in select distinct touched.resource_type from touched order by 1 loop
        perform pg_advisory_xact_lock(hashtext('pgaudit_wf.org_limit'), hashtext(type));
        if exists (select from pgaudit_wf.org_limit as l where l.resource_type = type) then
            for setting in
                select a.* from pgaudit_wf.attachment as a
                where a.resource_type = type and not exists (select from pgaudit_wf.limit_target as t where t.target = a.target)
                order by a.target::oid
            loop
                perform pgaudit_wf.place_limit(setting, true);
            end loop;
        else
            -- Whoever may not drop the triggers leaves them: they then count what nobody asks for.
            for counted in
                select t.target from pgaudit_wf.limit_target as t join pg_class as c on c.oid = t.target
                where t.resource_type = type and pg_has_role(c.relowner, 'usage') order by t.target::oid
            loop
                perform pgaudit_wf.uninstall_limit(counted);
            end loop;
        end if;
    end loop;
    return null;
end
$$;
comment on function pgaudit_wf.apply_org_limit() is 'Trigger of org_limit: has tables counted from the first limit of their type until the last.';

create trigger apply_insert after insert on pgaudit_wf.org_limit
    referencing new table as touched for each statement execute function pgaudit_wf.apply_org_limit();
create trigger apply_update_new after update on pgaudit_wf.org_limit
    referencing new table as touched for each statement execute function pgaudit_wf.apply_org_limit();
create trigger apply_update_old after update on pgaudit_wf.org_limit
    referencing old table as touched for each statement execute function pgaudit_wf.apply_org_limit();
create trigger apply_delete after delete on pgaudit_wf.org_limit
    referencing old table as touched for each statement execute function pgaudit_wf.apply_org_limit();

create function pgaudit_wf.apply_limit_condition() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
begin
    for setting in
        select a.* from pgaudit_wf.attachment as a
        where a.resource_type in (select touched.resource_type from touched) order by a.target::oid
    loop
        perform pgaudit_wf.compile_limit_condition(setting.target, setting.resource_type);
        perform pgaudit_wf.place_limit(setting, true);
    end loop;
    return null;
end
$$;
comment on function pgaudit_wf.apply_limit_condition() is 'Trigger of limit_condition: checks the condition on the attached tables of its type and counts their rows by it.';

create trigger apply_insert after insert on pgaudit_wf.limit_condition
    referencing new table as touched for each statement execute function pgaudit_wf.apply_limit_condition();
create trigger apply_update_new after update on pgaudit_wf.limit_condition
    referencing new table as touched for each statement execute function pgaudit_wf.apply_limit_condition();
create trigger apply_update_old after update on pgaudit_wf.limit_condition
    referencing old table as touched for each statement execute function pgaudit_wf.apply_limit_condition();
create trigger apply_delete after delete on pgaudit_wf.limit_condition
    referencing old table as touched for each statement execute function pgaudit_wf.apply_limit_condition();

create function pgaudit_wf.record_org_limit() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    before constant jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) - 'id' end;
    after constant jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) - 'id' end;
begin
    if before is distinct from after then
        insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff)
        values (coalesce(after, before) ->> 'org_id', case when tg_op = 'DELETE' then 'org_limit.removed' else 'org_limit.set' end,
            'org_limit', coalesce(after, before) ->> 'resource_type', true, pgaudit_wf.json_diff(before, after));
    end if;
    return null;
end
$$;
comment on function pgaudit_wf.record_org_limit() is 'Trigger of org_limit: records as org_limit.set and org_limit.removed who allowed whom how much.';
create trigger record after insert or update or delete on pgaudit_wf.org_limit
    for each row execute function pgaudit_wf.record_org_limit();

create function pgaudit_wf.write_org_limit(org_id text, resource_type text, max_count bigint) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
    insert into pgaudit_wf.org_limit (org_id, resource_type, max_count)
    values (write_org_limit.org_id, write_org_limit.resource_type, write_org_limit.max_count)
    on conflict on constraint org_limit_key do update set max_count = excluded.max_count
$$;
comment on function pgaudit_wf.write_org_limit(text, text, bigint) is
    'set_org_limit() for whom the table org_limit is closed. Granted to nobody.';

create function pgaudit_wf.set_org_limit(org_id text, resource_type text, max_count bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    -- The first limit of a type puts triggers on its tables, which takes the rights of whoever owns them: ours do not reach so far.
    if has_table_privilege('pgaudit_wf.org_limit', 'insert') and has_table_privilege('pgaudit_wf.org_limit', 'update') then
        insert into pgaudit_wf.org_limit (org_id, resource_type, max_count) values (org_id, resource_type, max_count)
        on conflict on constraint org_limit_key do update set max_count = excluded.max_count;
    else
        perform pgaudit_wf.write_org_limit(org_id, resource_type, max_count);
    end if;
end
$$;
comment on function pgaudit_wf.set_org_limit(text, text, bigint) is
    'Sets the limit of an organisation (null: of all that have none of their own) for a resource type, whether it had one or not; max_count null: no limit for this organisation. '
    'Granted to nobody: whoever may call it decides what is paid for. A login that is to set limits and no more needs EXECUTE on it and on write_org_limit(); the first limit of a type must come from the owner of its tables or a superuser (else PA331).';

-- sql/core/340_retention.sql

-- How long events and versions are kept, and the only way in which old ones leave.
--
-- Events leave a whole partition at a time, once archived (350_archive.sql): what is judged is the partition's end, so that each is
-- touched once for each number of days in force. Rows under a longer policy than the rest of their month are carried over into a
-- fresh partition in its place: a long policy for one organisation does not keep everybody's events.

create table pgaudit_wf.retention_policy (
    id bigint generated always as identity primary key,
    action_pattern text not null default '*',
    org_id text,
    keep_days integer,
    constraint retention_policy_scope unique nulls not distinct (action_pattern, org_id),
    constraint retention_policy_action_pattern check (action_pattern <> ''),
    constraint retention_policy_keep_days check (keep_days between 30 and 1000000)
);
comment on table pgaudit_wf.retention_policy is
    'How long events are kept. Of the policies that fit an event the most specific one holds: for its organisation before for all, then the longer pattern. An event that none fits stays for good.';
comment on column pgaudit_wf.retention_policy.id is 'Number of the policy.';
comment on column pgaudit_wf.retention_policy.action_pattern is 'Actions it is for; * stands for any characters: api_key.*.';
comment on column pgaudit_wf.retention_policy.org_id is 'Organisation it is for; null: all, and events without one.';
comment on column pgaudit_wf.retention_policy.keep_days is 'Days, from 30 to 1,000,000, that an event stays after the end of its month (UTC); null: for good.';
insert into pgaudit_wf.retention_policy (keep_days) values (730);

create table pgaudit_wf.version_policy (
    org_id text unique nulls not distinct,
    keep_versions integer,
    keep_days integer not null default 90,
    constraint version_policy_keep_versions check (keep_versions >= 1),
    constraint version_policy_keep_days check (keep_days between 30 and 1000000)
);
comment on table pgaudit_wf.version_policy is
    'Which versions of workflows keep their snapshot: the newest ones, the young ones, and any that a run points at. Of the others the chain stays: number, hash, change, who and when.';
comment on column pgaudit_wf.version_policy.org_id is 'Organisation it is for; null: all that have no policy of their own.';
comment on column pgaudit_wf.version_policy.keep_versions is 'How many of a workflow''s newest versions keep it; null: all.';
comment on column pgaudit_wf.version_policy.keep_days is 'Days, from 30 to 1,000,000, for which every version keeps it.';
insert into pgaudit_wf.version_policy (keep_versions) values (100);

create function pgaudit_wf.record_policy_change() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgaudit_wf.record_event(tg_argv[0] || '.changed', tg_argv[0], null,
        case when tg_op <> 'INSERT' then to_jsonb(old) end, case when tg_op <> 'DELETE' then to_jsonb(new) end);
    return null;
end
$$;
comment on function pgaudit_wf.record_policy_change() is 'Trigger: who changed how long things are kept is itself in the log.';
create trigger record_change after insert or update or delete on pgaudit_wf.retention_policy
    for each row execute function pgaudit_wf.record_policy_change('retention_policy');
create trigger record_change after insert or update or delete on pgaudit_wf.version_policy
    for each row execute function pgaudit_wf.record_policy_change('version_policy');
alter table pgaudit_wf.retention_policy enable always trigger record_change;
alter table pgaudit_wf.version_policy enable always trigger record_change;

create function pgaudit_wf.matches_pattern(action text, pattern text) returns boolean
language sql immutable strict parallel safe
as $$
    select action like replace(replace(replace(replace(pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%')
$$;
comment on function pgaudit_wf.matches_pattern(text, text) is 'Whether an action fits a pattern in which * stands for any characters.';

create function pgaudit_wf.retention_days(action text, org_id text default null) returns integer
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select p.keep_days
    from pgaudit_wf.retention_policy as p
    where pgaudit_wf.matches_pattern(retention_days.action, p.action_pattern) and (p.org_id is null or p.org_id = retention_days.org_id)
    order by p.org_id is null, length(replace(p.action_pattern, '*', '')) desc, strpos(p.action_pattern, '*') > 0, p.action_pattern desc
    limit 1
$$;
comment on function pgaudit_wf.retention_days(text, text) is
    'Days for which an event of that action and organisation is kept after the end of its month; null: for good, as when no policy fits.';

create function pgaudit_wf.keeps_until(to_time timestamptz, keep_days integer) returns timestamptz
language sql immutable parallel safe
set timezone = 'UTC'
as $$ select coalesce(to_time + make_interval(days => keep_days), 'infinity') $$;
comment on function pgaudit_wf.keeps_until(timestamptz, integer) is 'When events of a month that ends then are out of the retention window.';

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

create function pgaudit_wf.month_of(partition_name text) returns table (relation regclass, from_time timestamptz, to_time timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query select m.relation, m.from_time, m.to_time from pgaudit_wf.log_months() as m where m.partition_name = month_of.partition_name;
    if not found then
        raise exception '"%" is no monthly partition of the log', month_of.partition_name
            using errcode = 'PA340', hint = 'pgaudit_wf.log_months() lists them.';
    end if;
end
$$;
comment on function pgaudit_wf.month_of(text) is 'A monthly partition of the log by name; raises PA340 if it is none.';

create function pgaudit_wf.retention_groups(relation regclass, to_time timestamptz)
returns table (action text, org_id text, events bigint, keep_until timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query execute format(
        'select g.action, g.org_id, g.events, pgaudit_wf.keeps_until($1, pgaudit_wf.retention_days(g.action, g.org_id))'
        ' from (select l.action, l.org_id, count(*) as events from only %s as l group by 1, 2) as g', retention_groups.relation)
        using retention_groups.to_time;
end
$$;
comment on function pgaudit_wf.retention_groups(regclass, timestamptz) is 'What a month of the log holds by action and organisation, and until when each is kept.';

create function pgaudit_wf.log_retention(at timestamptz default now())
returns table (partition_name text, from_time timestamptz, to_time timestamptz, events bigint, expired_events bigint, keep_until timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    month record;
begin
    if log_retention.at > now() then
        raise exception 'retention is judged at the present or a past moment, not at %', log_retention.at using errcode = 'PA008';
    end if;
    for month in
        select m.* from pgaudit_wf.log_months() as m
        -- Counting takes a scan: only where a policy is short enough to let something go.
        where pgaudit_wf.keeps_until(m.to_time, (select min(p.keep_days) from pgaudit_wf.retention_policy as p)) <= log_retention.at
    loop
        return query
            select month.partition_name, month.from_time, month.to_time, coalesce(sum(g.events), 0)::bigint,
                coalesce(sum(g.events) filter (where g.keep_until <= log_retention.at), 0)::bigint,
                nullif(coalesce(min(g.keep_until), pgaudit_wf.keeps_until(month.to_time, pgaudit_wf.retention_days('', null))), 'infinity')
            from pgaudit_wf.retention_groups(month.relation, month.to_time) as g;
    end loop;
end
$$;
comment on function pgaudit_wf.log_retention(timestamptz) is
    'The months of the log of which something may be out of the retention window: their events, how many of these are, and when the first of them is or will be (null: never). Raises PA008 on a moment to come.';

create function pgaudit_wf.prune(partition_name text) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    month record;
    total bigint;
    expired bigint;
    keep_until timestamptz;
    covered bigint;
    carried bigint := 0;
    fresh constant text := 'carried_over_' || prune.partition_name;
begin
    perform pg_advisory_xact_lock(hashtext('pgaudit_wf.add_log_partition'));
    select * into month from pgaudit_wf.month_of(prune.partition_name);
    -- Nothing can be added to it from here on; reading goes on.
    execute format('lock table only %s in share mode', month.relation);
    select coalesce(sum(g.events), 0), coalesce(sum(g.events) filter (where g.keep_until <= now()), 0),
        coalesce(min(g.keep_until), pgaudit_wf.keeps_until(month.to_time, pgaudit_wf.retention_days('', null)))
    into total, expired, keep_until
    from pgaudit_wf.retention_groups(month.relation, month.to_time) as g;
    if pgaudit_wf.keeps_until(month.to_time, 30) > now() or keep_until > now() then
        raise exception '% is inside the retention window', prune.partition_name
            using errcode = 'PA341', hint = 'pgaudit_wf.retention_policy says how long events are kept; nothing leaves before 30 days after the end of its month.';
    end if;
    covered := pgaudit_wf.archived_events(prune.partition_name);
    if covered is distinct from total then
        raise exception '% has % events, and % of them are archived', prune.partition_name, total, coalesce(covered, 0)
            using errcode = 'PA342', hint = 'Archive it first: pgaudit-wf maintain --archive URL does both.';
    end if;
    if total > 0 and (
        select a.read_back_at is null from pgaudit_wf.archive as a where a.partition_name = prune.partition_name order by a.id desc limit 1) then
        raise exception 'the archive of % has been rewritten since it was last read back', prune.partition_name
            using errcode = 'PA342', hint = 'pgaudit-wf maintain reads it and compares it with the log first.';
    end if;

    if expired < total then
        execute format('create table pgaudit_wf.%I (like pgaudit_wf.security_audit_log including defaults including constraints)', fresh);
        perform pgaudit_wf.revoke_defaults(format('pgaudit_wf.%I', fresh)::regclass);
        execute format(
            'insert into pgaudit_wf.%I select l.* from only %s as l'
            ' where array[l.action, l.org_id] in (select array[g.action, g.org_id] from pgaudit_wf.retention_groups($1, $2) as g where g.keep_until > now())',
            fresh, month.relation) using month.relation, month.to_time;
        get diagnostics carried = row_count;
    end if;
    update pgaudit_wf.archive as a set live_events = carried, pruned_at = now()
    where a.id = (select max(newest.id) from pgaudit_wf.archive as newest where newest.partition_name = prune.partition_name);
    if not found then
        -- An empty month needs no file; that it went is noted all the same.
        insert into pgaudit_wf.archive (partition_name, from_time, to_time, events, live_events, pruned_at)
        values (prune.partition_name, month.from_time, month.to_time, 0, 0, now());
    end if;
    execute format('drop table %s', month.relation);
    if carried > 0 then
        execute format('alter table pgaudit_wf.%I rename to %I', fresh, prune.partition_name);
        execute format('comment on table pgaudit_wf.%I is %L', prune.partition_name,
            format('Events of %s (UTC) that are kept longer than the rest of that month.', to_char(month.from_time, 'YYYY-MM')));
        execute format('alter table pgaudit_wf.security_audit_log attach partition pgaudit_wf.%I for values from (%L) to (%L)',
            prune.partition_name, month.from_time, month.to_time);
        perform pgaudit_wf.guard_log_partition(prune.partition_name);
    end if;
    return total - carried;
end
$$;
comment on function pgaudit_wf.prune(text) is
    'Removes a month of the log that is archived and out of the retention window, and returns how many events that were; those under a longer policy stay, in a fresh partition of that month. '
    'Raises PA340 if it is no month of the log, PA341 inside the window or less than 30 days after its end, PA342 if it holds an event that is not archived, or the archive has yet to be read back.';

create function pgaudit_wf.prunable_versions_query() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Tables of runs differ from one application to the next; what they point at stays.
    select 'with policy as ('
        '     select w.workflow_id, w.newest, coalesce(own.keep_versions, common.keep_versions) as keep_versions,'
        '         coalesce(own.keep_days, common.keep_days) as keep_days, own.org_id is not null as has_own, own.keep_versions as own_keep_versions'
        '     from (select distinct on (h.workflow_id) h.workflow_id, h.version as newest, h.org_id from pgaudit_wf.workflow_history as h order by h.workflow_id, h.version desc) as w'
        '     left join pgaudit_wf.version_policy as own on own.org_id = w.org_id'
        '     left join pgaudit_wf.version_policy as common on common.org_id is null)'
        ' select h.workflow_id, h.version from pgaudit_wf.workflow_history as h'
        ' join policy as p on p.workflow_id = h.workflow_id'
        ' where h.pruned_at is null'
        '     and h.version <= p.newest - case when p.has_own then p.own_keep_versions else p.keep_versions end'
        '     and h.created_at < now() - make_interval(days => p.keep_days)'
        || coalesce(string_agg(format(' and not exists (select from %s as run where %s = h.content_hash)', e.target,
            pgaudit_wf.text_expression((select atttypid from pg_attribute where attrelid = e.target and attname = e.hash_column), pgaudit_wf.field('run', e.hash_column))), '' order by e.target::oid), '')
        || ' order by h.workflow_id, h.version'
    from pgaudit_wf.execution_attachment as e
    where exists (select from pg_class where oid = e.target and relkind in ('r', 'p'))
$$;
comment on function pgaudit_wf.prunable_versions_query() is 'Query for the versions whose snapshot no policy and no run keeps.';

create function pgaudit_wf.prunable_versions() returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    found_versions bigint;
begin
    execute 'select count(*) from (' || pgaudit_wf.prunable_versions_query() || ') as v' into found_versions;
    return found_versions;
end
$$;
comment on function pgaudit_wf.prunable_versions() is 'How many versions prune_history() would let go of.';

create function pgaudit_wf.prune_history(max_versions integer default 1000) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- Rather an error than a run hidden by somebody's policy, which we would run to see it.
set row_security = off
as $$
declare
    pruned bigint;
    version pgaudit_wf.workflow_history;
    bare pgaudit_wf.workflow_history;
    keys text[] := '{}';
    numbers integer[] := '{}';
begin
    if coalesce(prune_history.max_versions, 0) < 1 then
        raise exception 'max_versions must be at least 1' using errcode = 'PA008';
    end if;
    -- What was sealed must verify without its snapshot too.
    perform pgaudit_wf.lock_seal();
    alter table pgaudit_wf.workflow_history disable trigger append_only;
    for version in
        execute 'select h.* from pgaudit_wf.workflow_history as h join (' || pgaudit_wf.prunable_versions_query()
            || ' limit $1) as v on h.workflow_id = v.workflow_id and h.version = v.version'
            using prune_history.max_versions
    loop
        bare := version;
        bare.snapshot := null;
        bare.pruned_at := now();
        perform pgaudit_wf.keep_commitments(version, bare);
        keys := keys || version.workflow_id;
        numbers := numbers || version.version;
    end loop;
    update pgaudit_wf.workflow_history as h set snapshot = null, pruned_at = now()
    from unnest(keys, numbers) as v (workflow_id, version)
    where h.workflow_id = v.workflow_id and h.version = v.version;
    get diagnostics pruned = row_count;
    alter table pgaudit_wf.workflow_history enable always trigger append_only;
    return pruned;
end
$$;
comment on function pgaudit_wf.prune_history(integer) is
    'Lets go of the snapshots of up to max_versions versions that version_policy no longer keeps and no run points at; returns how many. Numbers, hashes, changes, authors and times stay, so the chain still verifies. '
    'Call it until it returns less than max_versions. Raises PA008 on a wrong argument.';

-- DROP TABLE and DETACH would be the side door of an append-only log.
create function pgaudit_wf.refuse_drop() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    gone record;
    month timestamptz;
begin
    for gone in
        select d.object_name, d.object_identity from pg_event_trigger_dropped_objects() as d
        where d.schema_name = 'pgaudit_wf' and d.object_type = 'table'
            and d.object_name ~ '^(security_audit_log(_y\d{4}m\d{2}|_default)?|workflow_history|attachment_history|archive|erasure|erased_event|log_(tile|leaf|kept|checkpoint|cosignature))$'
    loop
        month := to_timestamp(substring(gone.object_name from 'y(\d{4}m\d{2})$'), 'YYYY"m"MM');
        -- A month to come holds nothing.
        continue when month > now();
        if month is not null then
            -- What prune() takes is noted in its transaction, and no earlier than it may be.
            continue when exists (
                select from pgaudit_wf.archive as a
                where a.partition_name = gone.object_name and a.from_time = month and a.pruned_at = now());
        end if;
        raise exception '% is part of the audit trail and cannot be dropped', gone.object_identity
            using errcode = 'PA343', hint = 'Old events leave by pgaudit_wf.prune(); pgaudit-wf migrate --to 0 removes the audit schema as a whole.';
    end loop;
end
$$;
comment on function pgaudit_wf.refuse_drop() is 'Event trigger: raises PA343 when a part of the audit trail is dropped by anything but prune().';

create function pgaudit_wf.refuse_detach() returns event_trigger
-- As the owner of our schema: whoever alters a table of his own need not be allowed to see into it.
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
    stray text;
begin
    -- What has the log's guard must be in its place and carry its name, or the next step could take it away.
    select c.oid::regclass::text into stray
    from pg_class as c
    join pg_trigger as t on t.tgrelid = c.oid and t.tgname = 'append_only'
    left join pg_inherits as i on i.inhrelid = c.oid
    where c.relnamespace = 'pgaudit_wf'::regnamespace and c.relkind = 'r'
        and (c.relname ~ '^security_audit_log_' or i.inhparent = 'pgaudit_wf.security_audit_log'::regclass)
        and (i.inhparent is null or i.inhdetachpending
            or c.relname <> case pg_get_expr(c.relpartbound, c.oid) when 'DEFAULT' then 'security_audit_log_default'
                else regexp_replace(pg_get_expr(c.relpartbound, c.oid), '^.*FROM \(''(\d{4})-(\d{2})-.*$', 'security_audit_log_y\1m\2') end)
    limit 1;
    if stray is not null then
        raise exception '% is part of the audit trail and can be neither detached nor renamed', stray
            using errcode = 'PA343', hint = 'Old events leave by pgaudit_wf.prune().';
    end if;
end
$$;
comment on function pgaudit_wf.refuse_detach() is 'Event trigger: raises PA343 when a partition of the log is detached or renamed.';

-- sql/core/350_archive.sql

-- Which months of the log lie in files, and where.

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
    constraint archive_file check ((events > 0) = (url is not null and sha256 is not null and manifest is not null)),
    constraint archive_sha256 check (sha256 ~ '^[0-9a-f]{64}$'),
    constraint archive_live_events check (live_events between 0 and events),
    constraint archive_window check (pruned_at >= pgaudit_wf.keeps_until(to_time, 30))
);
comment on table pgaudit_wf.archive is 'Months of the log that were written to files: written by record_archive(), confirm_archive(), prune() and replace_archive() only.';
comment on column pgaudit_wf.archive.id is 'Number of the archive; the newest of a month is the one that covers it.';
comment on column pgaudit_wf.archive.partition_name is 'The partition.';
comment on column pgaudit_wf.archive.from_time is 'Start of its month.';
comment on column pgaudit_wf.archive.to_time is 'End of its month, exclusive.';
comment on column pgaudit_wf.archive.events is 'Events in the file.';
comment on column pgaudit_wf.archive.live_events is 'How many of them are in the database too: all until the month is pruned, then those under a longer policy.';
comment on column pgaudit_wf.archive.first_id is 'Lowest id of an event in it.';
comment on column pgaudit_wf.archive.last_id is 'Highest id of an event in it.';
comment on column pgaudit_wf.archive.url is 'Where the Parquet file is: a path, or a URL as fsspec takes it; null for an empty month, which has none.';
comment on column pgaudit_wf.archive.sha256 is 'SHA-256 of the file, in hex.';
comment on column pgaudit_wf.archive.manifest is 'The manifest, as it lies beside the file.';
comment on column pgaudit_wf.archive.archived_at is 'When it was archived.';
comment on column pgaudit_wf.archive.read_back_at is
    'When the file was last read back from where it lies and found to hold the live events of its month; null: not since an erasure rewrote it, so prune() refuses.';
comment on column pgaudit_wf.archive.pruned_at is 'When its month was last pruned.';
create index archive_partition on pgaudit_wf.archive (partition_name, id);

-- What was archived is a fact; only how much of it is still live, and what an erasure rewrote, may change.
create trigger append_only before delete or truncate on pgaudit_wf.archive
    for each statement execute function pgaudit_wf.refuse_change();
create trigger append_only_row before update of id, partition_name, from_time, to_time, events, first_id, last_id, archived_at on pgaudit_wf.archive
    for each statement execute function pgaudit_wf.refuse_change();
alter table pgaudit_wf.archive enable always trigger append_only, enable always trigger append_only_row;

create function pgaudit_wf.archived_events(partition_name text) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- An empty month has nothing to archive.
    select coalesce(
        (select a.live_events from pgaudit_wf.archive as a where a.partition_name = archived_events.partition_name order by a.id desc limit 1), 0)
$$;
comment on function pgaudit_wf.archived_events(text) is 'How many of a month''s live events its newest archive covers; as the log only grows, it covers all if it is as many as there are.';

create function pgaudit_wf.record_archive(partition_name text, url text, sha256 text, manifest jsonb) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    month record;
    found_events bigint;
    lowest bigint;
    highest bigint;
    archive_id bigint;
begin
    select * into month from pgaudit_wf.month_of(record_archive.partition_name);
    execute format('select count(*), min(id), max(id) from only %s', month.relation) into found_events, lowest, highest;
    if found_events = 0
        or found_events is distinct from (record_archive.manifest ->> 'events')::bigint
        or lowest is distinct from (record_archive.manifest ->> 'first_id')::bigint
        or highest is distinct from (record_archive.manifest ->> 'last_id')::bigint then
        raise exception 'the manifest does not fit %: it says % events with ids from % to %, and there are % from % to %', record_archive.partition_name,
            record_archive.manifest ->> 'events', record_archive.manifest ->> 'first_id', record_archive.manifest ->> 'last_id',
            found_events, lowest, highest
            using errcode = 'PA350', hint = 'Archive the partition again.';
    end if;
    insert into pgaudit_wf.archive (partition_name, from_time, to_time, events, live_events, first_id, last_id, url, sha256, manifest, read_back_at)
    values (record_archive.partition_name, month.from_time, month.to_time, found_events, found_events, lowest, highest,
        record_archive.url, record_archive.sha256, record_archive.manifest, now())
    returning id into archive_id;
    return archive_id;
end
$$;
comment on function pgaudit_wf.record_archive(text, text, text, jsonb) is
    'Notes that a month of the log is in a file with that SHA-256 and manifest, and returns the archive''s number. To be called only once the file was read back from its URL and compared with the partition, as prune() relies on it. '
    'Raises PA340 if it is no month of the log, PA350 if the manifest''s counts are not the partition''s.';

create function pgaudit_wf.confirm_archive(id bigint, sha256 text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgaudit_wf.archive as a set read_back_at = now() where a.id = confirm_archive.id and a.sha256 = confirm_archive.sha256;
    if not found then
        raise exception 'there is no archive % with that SHA-256', confirm_archive.id
            using errcode = 'PA350', hint = 'It was rewritten meanwhile: read it again.';
    end if;
end
$$;
comment on function pgaudit_wf.confirm_archive(bigint, text) is
    'Notes that an archive''s file, of that SHA-256, was read back from its URL and compared with the live events of its month once more. Raises PA350 if the archive has another SHA-256 by now.';

create function pgaudit_wf.replace_archive(id bigint, sha256 text, manifest jsonb) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgaudit_wf.archive as a set sha256 = replace_archive.sha256, manifest = replace_archive.manifest, read_back_at = null
    where a.id = replace_archive.id
        and (a.events, a.first_id, a.last_id) = (
            (replace_archive.manifest ->> 'events')::bigint, (replace_archive.manifest ->> 'first_id')::bigint, (replace_archive.manifest ->> 'last_id')::bigint);
    if not found then
        raise exception 'there is no archive % with the counts of that manifest', replace_archive.id
            using errcode = 'PA350', hint = 'An erasure rewrites values in the file, and takes no event away.';
    end if;
end
$$;
comment on function pgaudit_wf.replace_archive(bigint, text, jsonb) is
    'Notes that an erasure has rewritten an archive''s file; its manifest names the erasure and the file''s previous SHA-256. Before its month is pruned it is to be read back again. Raises PA350 if the counts changed.';

-- sql/core/355_record_export.sql

-- Whoever takes the trail out of the database is in the trail.

create function pgaudit_wf.record_export(format text, filters jsonb, events bigint default null, outcome text default 'succeeded') returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Two fixed actions: a reader, who may export, does not get to write what he likes.
    return pgaudit_wf.record_event(
        case when record_export.events is null then 'audit.export_started' else 'audit.exported' end, 'audit_trail', null,
        metadata => jsonb_strip_nulls(jsonb_build_object(
            'format', left(record_export.format, 50), 'filters', coalesce(record_export.filters, '{}'), 'events', record_export.events)),
        outcome => record_export.outcome);
end
$$;
comment on function pgaudit_wf.record_export(text, jsonb, bigint, text) is
    'Records, with the current context, that an export of the trail begins (events null: audit.export_started) or how it ended (audit.exported, with the number of events that went out), and returns the event''s id.';

-- sql/core/360_erasure.sql

-- Erasure: what tells who an actor is gives way to a pseudonym; what was done, when and to what stays.
--
-- actor_id is a key and stays, as everything that belongs together hangs on it: it must not be a name or an address itself.
-- For checks of integrity, erased_event says which fields of which events are no longer what was sealed.

create table pgaudit_wf.erasure (
    actor_id text primary key,
    pseudonym text not null unique,
    erased_at timestamptz not null default now(),
    last_run_at timestamptz,
    events bigint not null default 0,
    versions bigint not null default 0
);
comment on table pgaudit_wf.erasure is 'Actors whose name, e-mail, address and user agent were erased. Holds no such value. Written by pseudonymise() only.';
comment on column pgaudit_wf.erasure.actor_id is 'Id of the actor, which stays.';
comment on column pgaudit_wf.erasure.pseudonym is 'What stands in place of name, e-mail and user agent; random, so it leads back to nobody.';
comment on column pgaudit_wf.erasure.erased_at is 'When it was asked for first.';
comment on column pgaudit_wf.erasure.last_run_at is 'When it was last run; null: begun, not run yet.';
comment on column pgaudit_wf.erasure.events is 'Events of the log changed so far.';
comment on column pgaudit_wf.erasure.versions is 'Versions of workflows changed so far.';

create table pgaudit_wf.erased_event (
    actor_id text not null references pgaudit_wf.erasure (actor_id),
    tx_id bigint not null,
    event_id bigint not null,
    fields text[] not null,
    erased_at timestamptz not null default now(),
    primary key (tx_id, event_id, actor_id)
);
comment on table pgaudit_wf.erased_event is 'Events that an erasure changed: what a check of integrity must know. Append-only but for the fields of a repeated erasure.';
comment on column pgaudit_wf.erased_event.actor_id is 'The actor.';
comment on column pgaudit_wf.erased_event.tx_id is 'tx_id of the event.';
comment on column pgaudit_wf.erased_event.event_id is 'id of the event.';
comment on column pgaudit_wf.erased_event.fields is 'Columns that no longer hold what was recorded: actor_label, ip, user_agent, diff, metadata.';
comment on column pgaudit_wf.erased_event.erased_at is 'When.';

create trigger append_only before delete or truncate on pgaudit_wf.erasure for each statement execute function pgaudit_wf.refuse_change();
create trigger append_only before delete or truncate on pgaudit_wf.erased_event for each statement execute function pgaudit_wf.refuse_change();
alter table pgaudit_wf.erasure enable always trigger append_only;
alter table pgaudit_wf.erased_event enable always trigger append_only;

create type pgaudit_wf.personal_value as (kind text, value text);
comment on type pgaudit_wf.personal_value is 'A value that tells who somebody is: its kind (name, email, ip, user_agent) and itself.';

create function pgaudit_wf.actor_resource_types() returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(array_agg(distinct a.resource_type), '{}')
    from pgaudit_wf.attachment as a
    join pg_depend as d on d.refclassid = 'pg_class'::regclass and d.refobjid = a.target and d.classid = 'pg_rewrite'::regclass
    join pg_rewrite as r on r.oid = d.objid
    where r.ev_class = 'pgaudit_wf.actor_directory'::regclass
$$;
comment on function pgaudit_wf.actor_resource_types() is 'Resource types of the attached tables that actor_directory reads: whose rows are the actors themselves.';

create function pgaudit_wf.kind_of_value(value text) returns text
language sql immutable strict parallel safe
as $$ select case when value ~ '^[^@\s]+@[^@\s]+$' then 'email' else 'name' end $$;
comment on function pgaudit_wf.kind_of_value(text) is 'Whether a label is an e-mail address or a name.';

create function pgaudit_wf.personal_members(diff jsonb) returns setof pgaudit_wf.personal_value
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select pgaudit_wf.kind_of_value(member.value #>> '{}'), member.value #>> '{}'
    from jsonb_array_elements(case when jsonb_typeof(diff) = 'array' then diff else '[]' end) as op,
    lateral (values (op -> 'old'), (op -> 'value')) as side (value),
    lateral (
        select pgaudit_wf.unpointer(op ->> 'path') as name, side.value where op ->> 'path' <> ''
        union all
        select whole.key, whole.value from jsonb_each(case when op ->> 'path' = '' and jsonb_typeof(side.value) = 'object' then side.value else '{}' end) as whole
    ) as member
    where jsonb_typeof(member.value) = 'string' and member.name ~* '(^|_|-|[a-z])(e[-_]?mail|name|phone)([-_]|$)' and member.value #>> '{}' not in ('', '[redacted]')
$$;
comment on function pgaudit_wf.personal_members(jsonb) is 'Names, e-mail addresses and telephone numbers in the diff of an actor''s own record, by the names of its columns.';

create function pgaudit_wf.event_values(event pgaudit_wf.security_audit_log, actor_id text, actor_types text[]) returns setof pgaudit_wf.personal_value
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select v.kind, v.value
    from (
        select pgaudit_wf.kind_of_value((event).actor_label), (event).actor_label where (event).actor_id = event_values.actor_id
        union all select 'ip', host((event).ip) where (event).actor_id = event_values.actor_id
        union all select 'user_agent', (event).user_agent where (event).actor_id = event_values.actor_id
        union all
        select own.kind, own.value
        from (
            select pgaudit_wf.kind_of_value((event).metadata ->> 'label'), (event).metadata ->> 'label'
            union all
            select m.kind, m.value from pgaudit_wf.personal_members((event).diff) as m
        ) as own (kind, value)
        where (event).resource_type = any (actor_types) and (event).resource_id = event_values.actor_id
    ) as v (kind, value)
    where v.value <> ''
$$;
comment on function pgaudit_wf.event_values(pgaudit_wf.security_audit_log, text, text[]) is 'What an event tells of who an actor is, as the one who did it or as its resource.';

create function pgaudit_wf.actor_values(actor_id text) returns setof pgaudit_wf.personal_value
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    types constant text[] := pgaudit_wf.actor_resource_types();
    known constant text := (select e.pseudonym from pgaudit_wf.erasure as e where e.actor_id = actor_values.actor_id);
begin
    return query
        select distinct v.kind, v.value
        from (
            select 'name' as kind, d.name as value from pgaudit_wf.actor_directory as d where d.actor_id = actor_values.actor_id
            union all select 'email', d.email from pgaudit_wf.actor_directory as d where d.actor_id = actor_values.actor_id
            union all select pgaudit_wf.kind_of_value(h.actor_label), h.actor_label from pgaudit_wf.workflow_history as h where h.actor_id = actor_values.actor_id
            union all
            select e.kind, e.value from pgaudit_wf.security_audit_log as l, lateral pgaudit_wf.event_values(l, actor_values.actor_id, types) as e
            where l.actor_id = actor_values.actor_id
            union all
            select e.kind, e.value from pgaudit_wf.security_audit_log as l, lateral pgaudit_wf.event_values(l, actor_values.actor_id, types) as e
            where l.resource_type = any (types) and l.resource_id = actor_values.actor_id
        ) as v
        where v.value <> '' and v.value is distinct from known;
end
$$;
comment on function pgaudit_wf.actor_values(text) is
    'All that the directory, the log and the history tell of who an actor is. For its owner only, before an erasure.';

create function pgaudit_wf.mask_text(text_part text, exact text[], emails text[], pseudonym text) returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    value text;
begin
    if text_part = any (exact) then
        return pseudonym;
    end if;
    foreach value in array emails loop
        if strpos(lower(text_part), lower(value)) > 0 then
            -- As a whole: not the end of a longer address, nor the beginning of a longer domain.
            text_part := regexp_replace(text_part,
                '(?<![[:alnum:]._%+-])' || regexp_replace(value, '([][\\.^$*+?(){}|-])', '\\\1', 'g') || '(?![[:alnum:]-]|\.[[:alnum:]])',
                pseudonym, 'gi');
        end if;
    end loop;
    foreach value in array exact loop
        -- In running text only what is long enough to be no ordinary word.
        if length(value) >= 5 and strpos(text_part, value) > 0 then
            text_part := regexp_replace(text_part,
                '(?<![[:alnum:]])' || regexp_replace(value, '([][\\.^$*+?(){}|-])', '\\\1', 'g') || '(?![[:alnum:]])', pseudonym, 'g');
        end if;
    end loop;
    return text_part;
end
$$;
comment on function pgaudit_wf.mask_text(text, text[], text[], text) is
    'The text with the pseudonym in place of e-mail addresses, in any case, and of the exact values: as the whole text or, from five characters on, as words in it.';

create function pgaudit_wf.mask_json(doc jsonb, exact text[], emails text[], pseudonym text) returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return case jsonb_typeof(doc)
        when 'string' then to_jsonb(pgaudit_wf.mask_text(doc #>> '{}', exact, emails, pseudonym))
        when 'array' then (
            select coalesce(jsonb_agg(pgaudit_wf.mask_json(e.value, exact, emails, pseudonym) order by e.position), '[]')
            from jsonb_array_elements(doc) with ordinality as e (value, position))
        when 'object' then (
            select coalesce(jsonb_object_agg(pgaudit_wf.mask_text(m.key, '{}', emails, pseudonym), pgaudit_wf.mask_json(m.value, exact, emails, pseudonym)), '{}')
            from jsonb_each(doc) as m)
        else doc
    end;
end
$$;
comment on function pgaudit_wf.mask_json(jsonb, text[], text[], text) is 'The document with mask_text() applied to every string in it.';

create function pgaudit_wf.mask_event(
    event pgaudit_wf.security_audit_log, actor_id text, pseudonym text, actor_types text[], known pgaudit_wf.personal_value[] default '{}')
returns pgaudit_wf.security_audit_log
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    told pgaudit_wf.personal_value[] := known || array(select v from pgaudit_wf.event_values(event, mask_event.actor_id, actor_types) as v);
    emails constant text[] := array(select distinct v.value from unnest(told) as v where v.kind = 'email' and v.value <> pseudonym);
    -- A name, an address or a browser is many people's: it is his only where he is concerned. An e-mail address is one person's.
    concerned constant boolean := coalesce(event.actor_id = mask_event.actor_id, false)
        or coalesce(event.resource_id = mask_event.actor_id and event.resource_type = any (actor_types), false)
        or strpos(concat(event.diff::text, event.metadata::text, event.resource_id), to_json(mask_event.actor_id)::text) > 0
        or (cardinality(emails) > 0 and (
            pgaudit_wf.mask_json(event.diff, '{}', emails, pseudonym) is distinct from event.diff
            or pgaudit_wf.mask_json(event.metadata, '{}', emails, pseudonym) is distinct from event.metadata));
    exact constant text[] := case when concerned then array(select distinct v.value from unnest(told) as v where v.kind <> 'email' and v.value <> pseudonym) else '{}' end;
begin
    if event.actor_id = mask_event.actor_id then
        event.actor_label := case when event.actor_label is not null then pseudonym end;
        event.ip := null;
        event.user_agent := case when event.user_agent is not null then pseudonym end;
    else
        event.actor_label := pgaudit_wf.mask_text(event.actor_label, '{}', emails, pseudonym);
        event.user_agent := pgaudit_wf.mask_text(event.user_agent, '{}', emails, pseudonym);
    end if;
    event.diff := pgaudit_wf.mask_json(event.diff, exact, emails, pseudonym);
    event.metadata := pgaudit_wf.mask_json(event.metadata, exact, emails, pseudonym);
    return event;
end
$$;
comment on function pgaudit_wf.mask_event(pgaudit_wf.security_audit_log, text, text, text[], pgaudit_wf.personal_value[]) is
    'An event without what tells who the actor is: his label and user agent become the pseudonym, his address null, and values in diff and metadata that equal what the event or known tells of him the pseudonym.';

create function pgaudit_wf.pseudonyms(actor_ids text[]) returns table (actor_id text, pseudonym text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select e.actor_id, e.pseudonym from pgaudit_wf.erasure as e where e.actor_id = any (pseudonyms.actor_ids)
$$;
comment on function pgaudit_wf.pseudonyms(text[]) is 'Those of the actors who were erased, and their pseudonyms: for whoever reads an archive written before.';

create function pgaudit_wf.archives_with(pseudonym text) returns setof bigint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select a.id from pgaudit_wf.archive as a
    where a.url is not null
        and not coalesce(a.manifest -> 'erasures', '[]') @> jsonb_build_array(jsonb_build_object('pseudonym', archives_with.pseudonym))
    order by a.id
$$;
comment on function pgaudit_wf.archives_with(text) is 'Numbers of the archives whose file an erasure has not gone through.';

create function pgaudit_wf.erase_from_partition(part regclass, actor_id text, pseudonym text, known pgaudit_wf.personal_value[]) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    types constant text[] := pgaudit_wf.actor_resource_types();
    emails constant text[] := array(select lower(v.value) from unnest(known) as v where v.kind = 'email');
    ids bigint[];
    changed bigint;
begin
    -- Searched before anything is locked, as writers to the newest partition then have to wait.
    execute format(
        'select array_agg(l.id) from only %s as l where l.actor_id = $1 or l.resource_id = $1 or strpos(l.resource_id, to_json($1)::text) > 0'
        ' or strpos(l.diff::text, to_json($1)::text) > 0 or strpos(l.metadata::text, to_json($1)::text) > 0'
        ' or exists (select from unnest($2) as email where strpos(lower(concat_ws('' '', l.actor_label, l.user_agent, l.diff, l.metadata)), email) > 0)', part)
        into ids using erase_from_partition.actor_id, emails;
    if ids is null then
        return 0;
    end if;
    -- So that a sealed event still verifies, and what is masked cannot be guessed from its leaf.
    perform pgaudit_wf.lock_seal();
    execute format(
        'select pgaudit_wf.keep_commitments(l::pgaudit_wf.security_audit_log, pgaudit_wf.mask_event(l::pgaudit_wf.security_audit_log, $1, $2, $3, $4))'
        ' from only %s as l where l.id = any ($5)', part)
        using erase_from_partition.actor_id, erase_from_partition.pseudonym, types, known, ids;
    -- Before the values go, what their seal needs of them.
    execute format(
        'select pgaudit_wf.keep_commitments(l::pgaudit_wf.security_audit_log, pgaudit_wf.mask_event(l::pgaudit_wf.security_audit_log, $1, $2, $3, $4))'
        ' from only %1$s as l where l.id = any ($5)', part)
        using erase_from_partition.actor_id, erase_from_partition.pseudonym, types, known, ids;
    execute format('alter table %s disable trigger append_only_row, disable trigger append_only', part);
    execute format(
        'with masked as ('
        '     select l.tx_id, l.id, l.occurred_at, m.actor_label, m.ip, m.user_agent, m.diff, m.metadata, array_remove(array['
        '         case when l.actor_label is distinct from m.actor_label then ''actor_label'' end,'
        '         case when l.ip is distinct from m.ip then ''ip'' end,'
        '         case when l.user_agent is distinct from m.user_agent then ''user_agent'' end,'
        '         case when l.diff is distinct from m.diff then ''diff'' end,'
        '         case when l.metadata is distinct from m.metadata then ''metadata'' end], null) as fields'
        '     from only %1$s as l, lateral pgaudit_wf.mask_event(l::pgaudit_wf.security_audit_log, $1, $2, $3, $4) as m'
        '     where l.id = any ($5)),'
        ' changed as ('
        '     update only %1$s as l set actor_label = m.actor_label, ip = m.ip, user_agent = m.user_agent, diff = m.diff, metadata = m.metadata'
        '     from masked as m'
        '     where l.tx_id = m.tx_id and l.id = m.id and l.occurred_at = m.occurred_at and m.fields <> ''{}'''
        '     returning l.tx_id, l.id, m.fields)'
        ' insert into pgaudit_wf.erased_event as e (actor_id, tx_id, event_id, fields) select $1, c.tx_id, c.id, c.fields from changed as c'
        ' on conflict (tx_id, event_id, actor_id) do update'
        '     set fields = (select array_agg(distinct f) from unnest(e.fields || excluded.fields) as f), erased_at = now()', part)
        using erase_from_partition.actor_id, erase_from_partition.pseudonym, types, known, ids;
    get diagnostics changed = row_count;
    execute format('alter table %s enable always trigger append_only_row, enable always trigger append_only', part);
    return changed;
end
$$;
comment on function pgaudit_wf.erase_from_partition(regclass, text, text, pgaudit_wf.personal_value[]) is 'Erases an actor from one partition of the log; returns how many events that changed.';

create function pgaudit_wf.begin_erasure(actor_id text, known_elsewhere boolean default false) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    known text;
begin
    perform pg_advisory_xact_lock(hashtext('pgaudit_wf.pseudonymise'));
    select e.pseudonym into known from pgaudit_wf.erasure as e where e.actor_id = begin_erasure.actor_id;
    if known is not null then
        return known;
    end if;
    -- A misspelt id must not be taken for an erasure that was done.
    if begin_erasure.actor_id is null or not (begin_erasure.known_elsewhere
        or exists (select from pgaudit_wf.security_audit_log as l where l.actor_id = begin_erasure.actor_id)
        or exists (select from pgaudit_wf.security_audit_log as l where l.resource_type = any (pgaudit_wf.actor_resource_types()) and l.resource_id = begin_erasure.actor_id)
        or exists (select from pgaudit_wf.workflow_history as h where h.actor_id = begin_erasure.actor_id)
        or exists (select from pgaudit_wf.actor_directory as d where d.actor_id = begin_erasure.actor_id)) then
        raise exception 'there is no actor "%"', begin_erasure.actor_id
            using errcode = 'PA360', hint = 'Give the id as in app.actor_id; neither log, history nor pgaudit_wf.actor_directory knows this one.';
    end if;
    insert into pgaudit_wf.erasure (actor_id, pseudonym)
    values (begin_erasure.actor_id, 'erased-' || substr(replace(gen_random_uuid()::text, '-', ''), 1, 16))
    returning pseudonym into known;
    return known;
end
$$;
comment on function pgaudit_wf.begin_erasure(text, boolean) is
    'Gives an actor the pseudonym that pseudonymise() will use, without changing an event yet: for a job that rewrites archives first, and may have found him only there (known_elsewhere). Raises PA360 for an actor that nothing knows.';

create function pgaudit_wf.pseudonymise(actor_id text, more_values text[] default '{}')
returns table (pseudonym text, events bigint, versions bigint, archives bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    own constant boolean := current_setting('app.actor_id', true) = pseudonymise.actor_id;
    label constant text := current_setting('app.actor_label', true);
    address constant text := current_setting('app.ip', true);
    agent constant text := current_setting('app.user_agent', true);
    reason constant text := current_setting('app.reason', true);
    known pgaudit_wf.personal_value[];
    emails text[];
    part regclass;
    version pgaudit_wf.workflow_history;
    masked pgaudit_wf.workflow_history;
    first_run boolean;
begin
    pseudonym := pgaudit_wf.begin_erasure(pseudonymise.actor_id);
    first_run := (select e.last_run_at is null from pgaudit_wf.erasure as e where e.actor_id = pseudonymise.actor_id);
    known := array(
        select v from pgaudit_wf.actor_values(pseudonymise.actor_id) as v
        union
        select row(pgaudit_wf.kind_of_value(more), more)::pgaudit_wf.personal_value from unnest(pseudonymise.more_values) as more where more <> '');
    emails := array(select v.value from unnest(known) as v where v.kind = 'email');

    perform pgaudit_wf.lock_seal();
    versions := 0;
    if exists (select from pgaudit_wf.workflow_history as h where h.actor_id = pseudonymise.actor_id and h.actor_label <> pseudonym) then
        perform pgaudit_wf.lock_seal();
        for version in
            select h.* from pgaudit_wf.workflow_history as h
            where h.actor_id = pseudonymise.actor_id and h.actor_label <> pseudonymise.pseudonym
        loop
            masked := version;
            masked.actor_label := pseudonymise.pseudonym;
            perform pgaudit_wf.keep_commitments(version, masked);
        end loop;
        for version in
            select h.* from pgaudit_wf.workflow_history as h where h.actor_id = pseudonymise.actor_id and h.actor_label <> pseudonymise.pseudonym
        loop
            masked := version;
            masked.actor_label := pseudonymise.pseudonym;
            perform pgaudit_wf.keep_commitments(version, masked);
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
        events := events + pgaudit_wf.erase_from_partition(part, pseudonymise.actor_id, pseudonym, known);
    end loop;
    -- What waits to be delivered still needs its address.
    update pgaudit_wf.alert_delivery as d
    set recipient = pseudonymise.pseudonym || '/' || d.id, last_error = pgaudit_wf.mask_text(d.last_error, '{}', emails, pseudonymise.pseudonym)
    where d.state in ('sent', 'dead') and lower(d.recipient) in (select lower(email) from unnest(emails) as email);
    archives := (select count(*) from pgaudit_wf.archives_with(pseudonym));

    update pgaudit_wf.erasure as e
    set last_run_at = now(), events = e.events + pseudonymise.events, versions = e.versions + pseudonymise.versions
    where e.actor_id = pseudonymise.actor_id;
    if first_run or events > 0 or versions > 0 then
        -- Whoever erases himself must not be recorded by name for it, nor anybody in a reason.
        if own then
            perform set_config('app.actor_label', '', true), set_config('app.ip', '', true), set_config('app.user_agent', '', true);
        end if;
        perform set_config('app.reason', coalesce(pgaudit_wf.mask_text(reason, array(select v.value from unnest(known) as v), emails, pseudonym), ''), true);
        perform pgaudit_wf.record_event('actor.pseudonymised', 'actor', pseudonymise.actor_id,
            metadata => jsonb_build_object('pseudonym', pseudonym, 'events', events, 'versions', versions, 'archives', archives));
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
    'Erases who an actor is: his name, e-mail and user agent become a stable random pseudonym in log and history, his address null; more_values are other names and addresses of his. Returns the pseudonym, the events and versions changed, and how many archives have yet to be rewritten (pgaudit-wf erase does; reading them masks him meanwhile). '
    'Recorded as actor.pseudonymised; calling it again takes what came since. Delete his account first, as that is recorded too. Raises PA360 for an actor that nothing knows.';

-- sql/core/400_log_tile.sql

-- Tamper evidence: the log's events and the versions of workflows as leaves of a Merkle tree (RFC 6962), kept as C2SP tlog-tiles,
-- with signed checkpoints. Written by `pgaudit-wf seal`, a reader of the log, so that it costs the write path nothing; the key that
-- signs is never here. docs/integrity.md describes what a leaf is, field by field.
--
-- Nothing here is believed by a check: who owns the database can change these tables too, but not so that they fit a checkpoint
-- of which a copy lies elsewhere.

create table pgaudit_wf.log_tile ( -- noqa: PRS
    level smallint not null,
    tile_number bigint not null,
    hashes bytea not null,
    primary key (level, tile_number),
    constraint log_tile_hashes check (length(hashes) % 32 = 0 and length(hashes) between 32 and 8192)
);
comment on table pgaudit_wf.log_tile is 'The tree, as C2SP tlog-tiles cuts it up: 256 hashes a tile. One that is not full yet grows. Tiles outlive the events.';
comment on column pgaudit_wf.log_tile.level is '0: hashes of leaves; above, each hash is the root of a full tile below.';
comment on column pgaudit_wf.log_tile.tile_number is 'Number of the tile in its level, from 0.';
comment on column pgaudit_wf.log_tile.hashes is 'Up to 256 SHA-256 hashes, one after the other; a tile of a smaller tree is its beginning.';
-- Hashes do not compress, and are read as a whole.
alter table pgaudit_wf.log_tile alter column hashes set storage external; -- noqa: PRS

create table pgaudit_wf.log_leaf (
    leaf_index bigint primary key,
    event_id bigint,
    tx_id bigint,
    occurred_at timestamptz,
    workflow_id text,
    version integer,
    salt bytea,
    snapshot bytea,
    constraint log_leaf_subject check (num_nonnulls(event_id, tx_id, occurred_at) in (0, 3) and num_nonnulls(workflow_id, version) in (0, 2)
        and (event_id is null) <> (workflow_id is null)),
    constraint log_leaf_salt check (length(salt) = 16),
    constraint log_leaf_snapshot check (length(snapshot) = 32)
);
comment on table pgaudit_wf.log_leaf is 'Which event, or version of a workflow, each leaf of the tree is, and the secret of its commitments. For the owner only.';
comment on column pgaudit_wf.log_leaf.leaf_index is 'Number of the leaf, from 0.';
comment on column pgaudit_wf.log_leaf.event_id is 'id of the event; null for a version.';
comment on column pgaudit_wf.log_leaf.tx_id is 'Its tx_id.';
comment on column pgaudit_wf.log_leaf.occurred_at is 'Its occurred_at.';
comment on column pgaudit_wf.log_leaf.workflow_id is 'workflow_id of the version; null for an event.';
comment on column pgaudit_wf.log_leaf.version is 'Its number.';
comment on column pgaudit_wf.log_leaf.salt is 'Random; with it the commitments of the leaf can be opened. Null once something of it was erased: log_kept holds the rest.';
comment on column pgaudit_wf.log_leaf.snapshot is 'Commitment to a version''s snapshot, which may be let go of before the version.';
create unique index log_leaf_event on pgaudit_wf.log_leaf (event_id, tx_id) where event_id is not null;
create unique index log_leaf_version on pgaudit_wf.log_leaf (workflow_id, version) where workflow_id is not null;

create table pgaudit_wf.log_kept (
    leaf_index bigint not null references pgaudit_wf.log_leaf (leaf_index),
    part text not null,
    key bytea,
    commitment bytea,
    primary key (leaf_index, part),
    constraint log_kept_rest check (num_nonnulls(key, commitment) = 1 and length(coalesce(key, commitment)) = 32)
);
comment on table pgaudit_wf.log_kept is 'What is left of the secret of a leaf after an erasure. For the owner only.';
comment on column pgaudit_wf.log_kept.leaf_index is 'The leaf.';
comment on column pgaudit_wf.log_kept.part is 'Part of the leaf that is committed to: who, diff/0, metadata/0, …';
comment on column pgaudit_wf.log_kept.key is 'Key of the part''s commitment, where its value is still there.';
comment on column pgaudit_wf.log_kept.commitment is 'The commitment, where the value was erased: it proves nothing about the value without the key, which is gone.';

create table pgaudit_wf.log_checkpoint (
    size bigint primary key,
    origin text not null,
    root bytea not null,
    sealed_at timestamptz not null default now(),
    note text,
    constraint log_checkpoint_size check (size > 0),
    constraint log_checkpoint_root check (length(root) = 32)
);
comment on table pgaudit_wf.log_checkpoint is 'What the log commits to: the tree''s root at each size at which it was sealed, as C2SP tlog-checkpoint has it.';
comment on column pgaudit_wf.log_checkpoint.size is 'Leaves in the tree.';
comment on column pgaudit_wf.log_checkpoint.origin is 'Name of the log, which is also the name of its key.';
comment on column pgaudit_wf.log_checkpoint.root is 'Root of the tree of that size.';
comment on column pgaudit_wf.log_checkpoint.sealed_at is 'When it was sealed, by the database''s clock.';
comment on column pgaudit_wf.log_checkpoint.note is 'The signed note; null between the commit of the tree and its signature, so that no two trees of one size are ever signed.';

create table pgaudit_wf.log_cosignature (
    size bigint not null references pgaudit_wf.log_checkpoint (size),
    line text not null,
    added_at timestamptz not null default now(),
    primary key (size, line),
    constraint log_cosignature_line check (line ~ '^— [^[:space:]+]+ [A-Za-z0-9+/]+=*$')
);
comment on table pgaudit_wf.log_cosignature is 'Signatures of witnesses under checkpoints (C2SP tlog-cosignature).';
comment on column pgaudit_wf.log_cosignature.size is 'The checkpoint.';
comment on column pgaudit_wf.log_cosignature.line is 'The line of the signed note, without its newline.';
comment on column pgaudit_wf.log_cosignature.added_at is 'When it was added.';

create table pgaudit_wf.version_place (
    system_identifier bigint primary key,
    below_tx bigint not null,
    noted_at timestamptz not null default now()
);
comment on table pgaudit_wf.version_place is 'How far workflow_history was sealed, for each cluster in which the log has lived.';
comment on column pgaudit_wf.version_place.system_identifier is 'The cluster.';
comment on column pgaudit_wf.version_place.below_tx is 'Every version saved by a transaction below this one is sealed.';
comment on column pgaudit_wf.version_place.noted_at is 'When it last moved on.';

create function pgaudit_wf.guard_tree() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
set bytea_output = 'hex'
as $$
declare
    was constant jsonb := to_jsonb(old);
    is_now constant jsonb := to_jsonb(new);
    allowed boolean;
begin
    -- What may happen to what was written: a tile grows, a checkpoint is signed, a secret is destroyed.
    allowed := case tg_table_name
        when 'log_tile' then is_now - 'hashes' = was - 'hashes' and starts_with(is_now ->> 'hashes', was ->> 'hashes')
        when 'log_checkpoint' then was ->> 'note' is null and is_now - 'note' = was - 'note'
        when 'log_leaf' then is_now ->> 'salt' is null and is_now - 'salt' = was - 'salt'
        else is_now ->> 'key' is null and was ->> 'key' is not null
            and is_now - '{key,commitment}'::text[] = was - '{key,commitment}'::text[]
    end;
    if allowed then
        return new;
    end if;
    raise exception 'what was sealed in pgaudit_wf.% cannot be changed', tg_table_name
        using errcode = 'PA501', hint = 'A tile grows, a checkpoint is signed once, a secret is destroyed by pseudonymise(); nothing else may change.';
end
$$;
comment on function pgaudit_wf.guard_tree() is 'Trigger of the tree''s tables: raises PA501 on an UPDATE of what was sealed.';

create trigger append_only_row before update on pgaudit_wf.log_tile for each row execute function pgaudit_wf.guard_tree();
create trigger append_only_row before update on pgaudit_wf.log_leaf for each row execute function pgaudit_wf.guard_tree();
create trigger append_only_row before update on pgaudit_wf.log_kept for each row execute function pgaudit_wf.guard_tree();
create trigger append_only_row before update on pgaudit_wf.log_checkpoint for each row execute function pgaudit_wf.guard_tree();
create trigger append_only before delete or truncate on pgaudit_wf.log_tile for each statement execute function pgaudit_wf.refuse_change();
create trigger append_only before delete or truncate on pgaudit_wf.log_leaf for each statement execute function pgaudit_wf.refuse_change();
create trigger append_only before delete or truncate on pgaudit_wf.log_kept for each statement execute function pgaudit_wf.refuse_change();
create trigger append_only before delete or truncate on pgaudit_wf.log_checkpoint for each statement execute function pgaudit_wf.refuse_change();
create trigger append_only before update or delete or truncate on pgaudit_wf.log_cosignature
    for each statement execute function pgaudit_wf.refuse_change();
alter table pgaudit_wf.log_tile enable always trigger append_only_row, enable always trigger append_only;
alter table pgaudit_wf.log_leaf enable always trigger append_only_row, enable always trigger append_only;
alter table pgaudit_wf.log_kept enable always trigger append_only_row, enable always trigger append_only;
alter table pgaudit_wf.log_checkpoint enable always trigger append_only_row, enable always trigger append_only;
alter table pgaudit_wf.log_cosignature enable always trigger append_only;

create function pgaudit_wf.whole_row(op jsonb) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case when jsonb_typeof(op) <> 'object' then null
        when op - 'value' = '{"op": "add", "path": ""}' and jsonb_typeof(op -> 'value') = 'object' then op -> 'value'
        when op - 'old' = '{"op": "remove", "path": ""}' and jsonb_typeof(op -> 'old') = 'object' then op -> 'old'
    end
$$;
comment on function pgaudit_wf.whole_row(jsonb) is 'The row that an operation of a diff adds or removes as a whole; null for any other operation.';

create function pgaudit_wf.event_parts(event pgaudit_wf.security_audit_log) returns table (part text, content text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select 'who', json_build_array((event).actor_label, (event).ip, (event).user_agent)::text
    union all
    select 'diff/' || row_number() over (order by piece.op_number, piece.member) - 1, piece.content
    from (
        select op.number as op_number, 0::bigint as member,
            case when pgaudit_wf.whole_row(op.value) is null then op.value::text else (op.value -> 'op')::text end as content
        from jsonb_array_elements(case when jsonb_typeof((event).diff) = 'array' then (event).diff else '[]' end) with ordinality as op (value, number)
        union all
        select op.number, member.number, to_json(member.key)::text || ': ' || member.value::text
        from jsonb_array_elements(case when jsonb_typeof((event).diff) = 'array' then (event).diff else '[]' end) with ordinality as op (value, number),
            jsonb_each(pgaudit_wf.whole_row(op.value)) with ordinality as member (key, value, number)
    ) as piece
    union all
    select 'diff', (event).diff::text where jsonb_typeof((event).diff) <> 'array'
    union all
    select 'metadata/' || member.number - 1, to_json(member.key)::text || ': ' || member.value::text
    from jsonb_each(case when jsonb_typeof((event).metadata) = 'object' then (event).metadata else '{}' end) with ordinality as member (key, value, number)
    union all
    select 'metadata', (event).metadata::text where jsonb_typeof((event).metadata) <> 'object'
$$;
comment on function pgaudit_wf.event_parts(pgaudit_wf.security_audit_log) is
    'The parts of an event to which its leaf holds commitments: who (label, address, user agent), each operation of the diff or column of a row, each member of metadata.';

create function pgaudit_wf.version_parts(version pgaudit_wf.workflow_history) returns table (part text, content text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select 'who', json_build_array((version).actor_label)::text
    union all select 'change', (version).change::text
    union all select 'snapshot', (version).snapshot::text where (version).snapshot is not null
$$;
comment on function pgaudit_wf.version_parts(pgaudit_wf.workflow_history) is 'The parts of a version to which its leaf holds commitments.';

create function pgaudit_wf.keep_parts(leaf_index bigint, before_parts text[], before_contents text[], after_parts text[], after_contents text[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    secret constant bytea := (select l.salt from pgaudit_wf.log_leaf as l where l.leaf_index = keep_parts.leaf_index);
begin
    if secret is null then
        -- Not the first erasure in it.
        update pgaudit_wf.log_kept as k
        set key = null, commitment = sha256(k.key || convert_to(was.content, 'UTF8'))
        from unnest(before_parts, before_contents) as was (part, content)
        where k.leaf_index = keep_parts.leaf_index and k.part = was.part and k.key is not null
            and not exists (
                select from unnest(after_parts, after_contents) as becomes (part, content) where becomes.part = was.part and becomes.content = was.content);
        return;
    end if;
    insert into pgaudit_wf.log_kept (leaf_index, part, key, commitment)
    select keep_parts.leaf_index, was.part,
        case when becomes.content = was.content then own.key end,
        case when becomes.content = was.content then null else sha256(own.key || convert_to(was.content, 'UTF8')) end
    from unnest(before_parts, before_contents) as was (part, content)
    left join unnest(after_parts, after_contents) as becomes (part, content) on becomes.part = was.part,
    lateral (select sha256(secret || convert_to(was.part, 'UTF8')) as key) as own;
    update pgaudit_wf.log_leaf as l set salt = null where l.leaf_index = keep_parts.leaf_index;
end
$$;
comment on function pgaudit_wf.keep_parts(bigint, text[], text[], text[], text[]) is
    'Keeps the commitments to those parts of a leaf that are about to change, and of the others the keys; destroys the leaf''s secret.';

create function pgaudit_wf.lock_seal() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform from pgaudit_wf.reader as r where r.name = 'seal' for update;
end
$$;
comment on function pgaudit_wf.lock_seal() is 'Waits for a sealer at work and keeps others out until the end of the transaction.';

create function pgaudit_wf.keep_commitments(was pgaudit_wf.security_audit_log, becomes pgaudit_wf.security_audit_log) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    sealed constant bigint := (
        select l.leaf_index from pgaudit_wf.log_leaf as l where l.event_id = (was).id and l.tx_id = (was).tx_id limit 1);
begin
    if sealed is not null and was is distinct from becomes then
        perform pgaudit_wf.keep_parts(sealed,
            array(select p.part from pgaudit_wf.event_parts(was) as p order by p.part), array(select p.content from pgaudit_wf.event_parts(was) as p order by p.part),
            array(select p.part from pgaudit_wf.event_parts(becomes) as p order by p.part), array(select p.content from pgaudit_wf.event_parts(becomes) as p order by p.part));
    end if;
end
$$;
comment on function pgaudit_wf.keep_commitments(pgaudit_wf.security_audit_log, pgaudit_wf.security_audit_log) is
    'Before an event is masked: keeps what its leaf needs so that the masked event still verifies, and destroys the secret with which what is masked could be guessed. Call lock_seal() first.';

create function pgaudit_wf.keep_commitments(was pgaudit_wf.workflow_history, becomes pgaudit_wf.workflow_history) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    sealed constant bigint := (
        select l.leaf_index from pgaudit_wf.log_leaf as l where l.workflow_id = (was).workflow_id and l.version = (was).version);
begin
    if sealed is not null and was is distinct from becomes then
        perform pgaudit_wf.keep_parts(sealed,
            array(select p.part from pgaudit_wf.version_parts(was) as p order by p.part), array(select p.content from pgaudit_wf.version_parts(was) as p order by p.part),
            array(select p.part from pgaudit_wf.version_parts(becomes) as p order by p.part), array(select p.content from pgaudit_wf.version_parts(becomes) as p order by p.part));
    end if;
end
$$;
comment on function pgaudit_wf.keep_commitments(pgaudit_wf.workflow_history, pgaudit_wf.workflow_history) is
    'The same for a version of a workflow.';

-- sql/core/880_doctor.sql

-- Is what should be recorded still being recorded?

create function pgaudit_wf.doctor() returns table (severity text, subject text, problem text, remedy text)
language sql
set search_path = pg_catalog, pg_temp
as $$
    with expected as (
        select a.target, tree.relid, wanted.name, to_regprocedure(format('pgaudit_wf.%I()', a.function_name)) as function, 'A' as state
        from pgaudit_wf.attachment as a,
        lateral (select a.target as relid union select leaf from pgaudit_wf.leaf_tables(a.target) as leaf) as tree
        join pg_class as c on c.oid = tree.relid,
        lateral unnest(array['!pgaudit_wf_insert', '!pgaudit_wf_update', '!pgaudit_wf_delete', 'pgaudit_wf_truncate']) as wanted (name)
        where wanted.name <> 'pgaudit_wf_truncate' or (c.relkind <> 'f' and tree.relid in (select pgaudit_wf.leaf_tables(a.target)))
        union all
        select t.target, tree.relid, wanted.name, to_regprocedure(format('pgaudit_wf.%I()', t.function_name)), 'O'
        from pgaudit_wf.limit_target as t,
        lateral (select t.target as relid union select relid from pg_partition_tree(t.target)) as tree
        join pg_class as c on c.oid = tree.relid and c.relkind <> 'f',
        lateral unnest(array['pgaudit_wf_limit_insert', 'pgaudit_wf_limit_update', 'pgaudit_wf_limit_delete']) as wanted (name)
    )
    select 'error', e.relid::regclass::text, format('the trigger %s is missing', e.name), format('select pgaudit_wf.attach(%L);', e.target)
    from expected as e
    where not exists (select from pg_trigger where tgrelid = e.relid and tgname = e.name and tgfoid = e.function and tgqual is null)
    union all
    select 'error', e.relid::regclass::text, format('the trigger %s is disabled', e.name), format('alter table %s enable %strigger %I;', e.relid::regclass, case e.state when 'A' then 'always ' else '' end, e.name)
    from expected as e
    join pg_trigger on tgrelid = e.relid and tgname = e.name and tgenabled not in ('A', e.state::"char")
    union all
    select 'error', a.target::text,
        format('its columns have changed since its trigger was made: %s', array_to_string(array(
            select '+' || name from unnest(pgaudit_wf.column_names(a.target)) as name where name <> all (a.columns)
            union all
            select '-' || name from unnest(a.columns) as name where name <> all (pgaudit_wf.column_names(a.target))), ', ')),
        format('select pgaudit_wf.attach(%L);', a.target)
    from pgaudit_wf.attachment as a
    where not (a.columns @> pgaudit_wf.column_names(a.target) and a.columns <@ pgaudit_wf.column_names(a.target))
    union all
    select 'error', a.target::text, 'its trigger is compiled, but DDL is not being followed: the next ALTER TABLE can make writes fail',
        format('alter event trigger … enable always; or, for the slower form that needs none: select pgaudit_wf.attach(%L);', a.target)
    from pgaudit_wf.attachment as a
    where a.form = 'compiled' and not pgaudit_wf.can_follow_ddl()
    union all
    select 'error', a.target::text, format('role %I can alter the table, and so switch its triggers off', member.rolname), format('revoke %I from %I;', owner.rolname, member.rolname)
    from pgaudit_wf.attachment as a
    join pg_class as c on c.oid = a.target
    join pg_roles as owner on owner.oid = c.relowner
    -- By inheritance: whoever makes a role is its administrator since PostgreSQL 16, which "member" takes for more than it is.
    join pg_roles as member on pg_has_role(member.oid, owner.oid, 'usage') and not member.rolsuper
    where pg_has_role(member.oid, to_regrole('pgaudit_wf_app'), 'usage') and member.rolname <> 'pgaudit_wf_app'
        and to_regrole('pgaudit_wf_app') is not null
    union all
    select 'error', l.relation::text,
        case l.privilege
            when 'SELECT' then format('role %s may read %s, past what is kept to each organization or from everybody', l.grantee, case when l.is_partition then 'a partition of the log' else 'the table' end)
            else format('role %s may %s the log directly', l.grantee, lower(l.privilege))
        end,
        format('revoke %s on %s from %s;', lower(l.privilege), l.relation, l.grantee)
    from (
        select c.oid::regclass as relation, case acl.grantee when 0 then 'public' else acl.grantee::regrole::text end as grantee,
            acl.privilege_type as privilege, c.relispartition as is_partition
        from pg_class as c, aclexplode(c.relacl) as acl
        where c.relnamespace = 'pgaudit_wf'::regnamespace and c.relkind in ('r', 'p', 'm') and acl.grantee <> c.relowner
            and (acl.privilege_type in ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER')
                or (acl.privilege_type = 'SELECT' and (c.relispartition
                    or c.relname = any ('{attestation_key,log_leaf,log_kept,canonical_cache,canonical_cache_node,erased_event,erasure}'))))
    ) as l
    union all
    select 'error', p.oid::regprocedure::text, format('it runs with the rights of %I, a superuser', owner.rolname),
        format('alter function %s owner to pgaudit_wf_owner;', p.oid::regprocedure)
    from pg_proc as p join pg_roles as owner on owner.oid = p.proowner and owner.rolsuper
    where p.pronamespace = 'pgaudit_wf'::regnamespace and p.prosecdef
    union all
    select 'error', 'pgaudit_wf', format('the schema belongs to %I, a superuser', owner.rolname), 'alter schema pgaudit_wf owner to pgaudit_wf_owner;'
    from pg_namespace as n join pg_roles as owner on owner.oid = n.nspowner and owner.rolsuper
    where n.nspname = 'pgaudit_wf'
    union all
    select 'error', 'pgaudit_wf_owner', format('the role that owns the audit schema is %s', surplus.what), format('alter role pgaudit_wf_owner %s;', surplus.remedy)
    from pg_roles as r,
    lateral (values (r.rolsuper, 'a superuser', 'nosuperuser'), (r.rolcanlogin, 'a login', 'nologin'), (r.rolcreaterole, 'allowed to make roles', 'nocreaterole'),
        (r.rolcreatedb, 'allowed to make databases', 'nocreatedb'), (r.rolreplication, 'allowed to replicate', 'noreplication'),
        (r.rolbypassrls, 'allowed to bypass row-level security', 'nobypassrls')) as surplus (has, what, remedy)
    where r.rolname = 'pgaudit_wf_owner' and surplus.has
    union all
    select 'error', 'pgaudit_wf_owner', format('the role that owns the audit schema is a member of %I', g.rolname), format('revoke %I from pgaudit_wf_owner;', g.rolname)
    from pg_auth_members as m
    join pg_roles as g on g.oid = m.roleid
    where m.member = to_regrole('pgaudit_wf_owner')
    union all
    select 'error', v.oid::regclass::text,
        format('%s has row-level security, which we do not run as %I: the view cannot be read', d.refobjid::regclass, pg_get_userbyid(v.relowner)),
        format('alter view %1$s owner to %2$s; grant select on %1$s to %3$I;', v.oid::regclass, t.relowner::regrole, pgaudit_wf.schema_owner())
    from pg_class as v
    join pg_rewrite as r on r.ev_class = v.oid
    join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0
    join pg_class as t on t.oid = d.refobjid and t.relrowsecurity and (t.relforcerowsecurity or t.relowner <> v.relowner)
        and t.relnamespace <> 'pgaudit_wf'::regnamespace
    where v.relnamespace = 'pgaudit_wf'::regnamespace and v.relkind = 'v' and not (select rolsuper or rolbypassrls from pg_roles where oid = v.relowner)
    group by v.oid, v.relowner, d.refobjid, t.relowner
    union all
    select 'error', a.target::text, format('rule %s is not applied: its condition could run a cast that somebody made of the type of a column', r.id),
        format('Drop the cast, or let the rule name other columns: select * from pgaudit_wf.action_rule where id = %s;', r.id)
    from pgaudit_wf.attachment as a
    join pgaudit_wf.action_rule as r on r.resource_type = a.resource_type and pgaudit_wf.rule_could_cast(a.target, r.condition)
    union all
    select 'error', v.oid::regclass::text, format('%I may not read the columns of %s that it names', owner.rolname, d.refobjid::regclass), 'select pgaudit_wf.grant_directory();'
    from pg_class as v
    join pg_roles as owner on owner.oid = v.relowner
    join pg_rewrite as r on r.ev_class = v.oid
    join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0
    where v.relnamespace = 'pgaudit_wf'::regnamespace and v.relkind = 'v' and not has_column_privilege(v.relowner, d.refobjid, d.refobjsubid::smallint, 'select')
    group by v.oid, owner.rolname, d.refobjid
    union all
    select 'error', b.target::text, b.problem, format('update pgaudit_wf.action_rule set condition = … where id = %s;', b.rule_id)
    from pgaudit_wf.broken_rules() as b
    union all
    select 'error', a.target::text, format('its owner %I may not call %s: whoever makes a partition of it is refused', c.relowner::regrole, p.oid::regprocedure),
        format('select pgaudit_wf.attach(%L);', a.target)
    from pgaudit_wf.attachment as a
    join pg_class as c on c.oid = a.target and c.relkind = 'p'
    join pg_proc as p on p.pronamespace = 'pgaudit_wf'::regnamespace and p.proname = a.function_name
    where not has_function_privilege(c.relowner, p.oid, 'execute')
    union all
    select 'warning', a.target::text, format('"%s", named in %s, is not there', named.name, named.role), format('select pgaudit_wf.attach(%L, %s => …);', a.target, named.role)
    from pgaudit_wf.attachment as a,
    lateral (
        select 'org_column' as role, a.org_column as name
        union all select 'label_column', a.label_column
        union all select 'ignore', unnest(a.ignore)
    ) as named
    where named.name <> all (pgaudit_wf.column_names(a.target))
    union all
    select 'error', t.target::text, format('its rows may not be counted right since %s', t.stale_since), format('select pgaudit_wf.recount_usage(%L);', t.resource_type)
    from pgaudit_wf.limit_target as t where t.stale_since is not null
    union all
    select 'error', t.target::text, format('its rows are not being counted: "%s", which its limit needs, is not there', needed.name),
        format('Mend pgaudit_wf.limit_condition, or name another org_column: select pgaudit_wf.attach(%L, org_column => …);', t.target)
    from pgaudit_wf.limit_target as t, unnest(t.org_column || t.condition_columns) as needed (name)
    where not exists (select from jsonb_each_text(t.aliases) as alias where alias.value = needed.name and alias.key = any (pgaudit_wf.column_names(t.target)))
    union all
    select 'error', guard.relation::text, 'the log''s append-only trigger is missing or disabled', 'Find out who disabled it; then: alter table … enable always trigger append_only;'
    from (
        select relid::regclass as relation from pg_partition_tree('pgaudit_wf.security_audit_log')
        union all values ('pgaudit_wf.attachment_history'::regclass)
    ) as guard
    where not exists (select from pg_trigger where tgrelid = guard.relation and tgname = 'append_only' and tgenabled = 'A')
    union all
    select 'warning', 'pgaudit_wf.security_audit_log', format('there is no partition for %s yet', to_char(month, 'YYYY-MM')), 'select pgaudit_wf.ensure_log_partitions();'
    from generate_series(date_trunc('month', now() at time zone 'UTC'), date_trunc('month', now() at time zone 'UTC') + interval '1 month', interval '1 month') as month
    where to_regclass(format('pgaudit_wf.security_audit_log_%s', to_char(month, '"y"YYYY"m"MM'))) is null
    union all
    select 'warning', 'pgaudit_wf.security_audit_log_default', 'events are waiting in the default partition', 'select pgaudit_wf.add_log_partition(''<their month>'');'
    where exists (select from pgaudit_wf.security_audit_log_default)
    union all
    select 'warning', f.target, format('%s changes went through unrecorded, last at %s (SQLSTATE %s)', count(*), max(f.occurred_at), max(f.sqlstate)),
        'Find the cause; delete the rows of pgaudit_wf.capture_failure when it is mended.'
    from pgaudit_wf.capture_failure as f group by f.target
    union all
    select 'notice', a.target::text, 'its trigger is of the generic form, which is slower', 'Run pgaudit-wf migrate as a role that may create event triggers, then attach again.'
    from pgaudit_wf.attachment as a
    where a.form = 'generic' and not pgaudit_wf.can_follow_ddl()
    union all
    select 'notice', a.target::text, 'its trigger is of the generic form, and need not be', format('select pgaudit_wf.attach(%L);', a.target)
    from pgaudit_wf.attachment as a
    where a.form = 'generic' and pgaudit_wf.can_follow_ddl()
    union all
    select 'notice', name, 'the role does not exist', format('create role %I nologin; select pgaudit_wf.grant_roles();', name)
    from unnest(array['pgaudit_wf_app', 'pgaudit_wf_reader']) as name
    where to_regrole(name) is null
    order by 1, 2, 3
$$;
comment on function pgaudit_wf.doctor() is
    'What is wrong or has drifted, and the remedy: missing or disabled triggers, changed columns, rights that are too wide, missing partitions. No row: all is well.';

-- sql/core/900_grants.sql

-- Who may do what. Nobody but the owner writes the log; triggers and record_event() do it as the owner.

create function pgaudit_wf.grant_roles() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    invoker regprocedure;
begin
    -- A function is everybody's by default, and a definer's rights are ours.
    revoke execute on all functions in schema pgaudit_wf from public;
    if to_regrole('pgaudit_wf_app') is not null then
        grant usage on schema pgaudit_wf to pgaudit_wf_app;
        grant execute on function pgaudit_wf.record_event(text, text, text, jsonb, jsonb, jsonb, text),
            pgaudit_wf.record_denied(text, text, text, jsonb), pgaudit_wf.record_attempt(jsonb),
            pgaudit_wf.restore_workflow(text, integer, regclass), pgaudit_wf.version_snapshot(text, integer), pgaudit_wf.org_version_snapshot(text, integer),
            pgaudit_wf.find_workflow(text, regclass), pgaudit_wf.newest_version(text), pgaudit_wf.same_definition(jsonb, jsonb, jsonb, jsonb),
            pgaudit_wf.validate_definition(jsonb, jsonb), pgaudit_wf.hash_definition(jsonb, jsonb) to pgaudit_wf_app;
        grant select on pgaudit_wf.config_alias, pgaudit_wf.action_schema to pgaudit_wf_app;
        -- Those about definitions call others, which only compute.
        for invoker in
            select p.oid::regprocedure from pg_proc as p
            where p.pronamespace = 'pgaudit_wf'::regnamespace and not p.prosecdef and p.provolatile <> 'v'
        loop
            execute format('grant execute on function %s to pgaudit_wf_app', invoker);
        end loop;
    end if;
    if to_regrole('pgaudit_wf_reader') is not null then
        grant usage on schema pgaudit_wf to pgaudit_wf_reader;
        grant select on pgaudit_wf.security_audit_log, pgaudit_wf.api_key_activity, pgaudit_wf.attachment, pgaudit_wf.attachment_history,
            pgaudit_wf.attached, pgaudit_wf.key_change, pgaudit_wf.action_rule, pgaudit_wf.capture_failure, pgaudit_wf.workflow_history, pgaudit_wf.workflow_timeline,
            pgaudit_wf.workflow_attachment, pgaudit_wf.execution_attachment, pgaudit_wf.config_alias, pgaudit_wf.action_schema,
            pgaudit_wf.org_limit, pgaudit_wf.limit_condition, pgaudit_wf.org_usage, pgaudit_wf.limit_usage to pgaudit_wf_reader;
        -- What runs with the caller's own rights can do no harm; of the definers, only those that check who asks.
        for invoker in select p.oid::regprocedure from pg_proc as p where p.pronamespace = 'pgaudit_wf'::regnamespace and not p.prosecdef loop
            execute format('grant execute on function %s to pgaudit_wf_reader', invoker);
        end loop;
        grant execute on function pgaudit_wf.readable_org(), pgaudit_wf.describe_actors(text, text[], text),
            pgaudit_wf.log_generations(),
            pgaudit_wf.pseudonyms(text[]), pgaudit_wf.record_export(text, jsonb, bigint, text) to pgaudit_wf_reader;
    end if;
end
$$;
comment on function pgaudit_wf.grant_roles() is
    'Gives pgaudit_wf_app and pgaudit_wf_reader their rights. Run it again after creating a role that was missing at installation.';

-- What the database's default privileges gave to others while all this was made.
select pgaudit_wf.revoke_defaults(oid)
from pg_catalog.pg_class where relnamespace = 'pgaudit_wf'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'S');

do $$
declare
    given record;
begin
    for given in
        select p.oid::regprocedure as function, acl.grantee::regrole as grantee
        from pg_proc as p, aclexplode(p.proacl) as acl
        where p.pronamespace = 'pgaudit_wf'::regnamespace and acl.grantee not in (0, p.proowner)
    loop
        execute format('revoke all on function %s from %s', given.function, given.grantee);
    end loop;
end
$$;

select pgaudit_wf.grant_roles();

-- sql/core/990_event_triggers.sql

-- The event triggers, which only the installing role may be able to make: their functions belong to the owner of our schema all the
-- same, and those that are security definer run as that role.

reset role;

do $$
begin
    -- Before the application's own, and in this order: a new partition's triggers call functions that after_ddl() has written.
    create event trigger pgaudit_wf_after_ddl on ddl_command_end when tag in ('ALTER TABLE', 'ALTER TYPE', 'CREATE TABLE', 'CREATE SCHEMA', 'CREATE CAST') execute function pgaudit_wf.after_ddl();
    create event trigger pgaudit_wf_after_drop on sql_drop execute function pgaudit_wf.after_drop();
    create event trigger pgaudit_wf_follow_as_author on ddl_command_end when tag in ('ALTER TABLE', 'CREATE TABLE', 'CREATE SCHEMA', 'CREATE VIEW') execute function pgaudit_wf.follow_as_author();
    create event trigger pgaudit_wf_refuse_detach on ddl_command_end when tag in ('ALTER TABLE') execute function pgaudit_wf.refuse_detach();
    create event trigger pgaudit_wf_refuse_drop on sql_drop when tag in ('DROP TABLE') execute function pgaudit_wf.refuse_drop();
    alter event trigger pgaudit_wf_after_ddl enable always;
    alter event trigger pgaudit_wf_after_drop enable always;
    alter event trigger pgaudit_wf_follow_as_author enable always;
    alter event trigger pgaudit_wf_refuse_detach enable always;
    alter event trigger pgaudit_wf_refuse_drop enable always;
    comment on event trigger pgaudit_wf_after_ddl is 'Writes the trigger functions of attached tables anew after DDL that concerns them.';
    comment on event trigger pgaudit_wf_after_drop is 'Forgets attached tables that are dropped; writes the functions of those that lose a column by CASCADE.';
    comment on event trigger pgaudit_wf_follow_as_author is 'Gives new partitions of attached tables their triggers; lets our views read the columns that they name.';
    comment on event trigger pgaudit_wf_refuse_detach is 'Keeps partitions of the log from being detached or renamed.';
    comment on event trigger pgaudit_wf_refuse_drop is 'Keeps the tables of the audit trail from being dropped by anything but prune().';
exception
    when insufficient_privilege then
        raise notice '% may not create event triggers: attach() compiles the generic form, which is slower but needs none, and nothing keeps the owner from dropping a partition of the log', current_user;
end
$$;

-- end of what is generated

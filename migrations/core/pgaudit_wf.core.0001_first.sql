-- generated from sql/ by make migration: edit sql/, not this

-- sql/core/010_schema.sql

-- The schema and the two group roles.
--
-- How it hangs together: attach() (080) compiles a trigger function for a table (070) from its settings (060) and rules (050);
-- the trigger appends one row to security_audit_log (030), whose column defaults say who is asking (020). Everything after
-- that only reads the log: the reader cursor (110), the trail (130), row_as_of (140).

create schema pgaudit_wf;

comment on schema pgaudit_wf is
    'Security audit trail: attach(table) records every change of it in security_audit_log, in the same transaction. Start with the views attached and audit_trail_entry and the function doctor().';

-- Roles are shared by all databases of a server, so another database may have made them already, or be making them now; and a
-- managed server may not let us. grant_roles() in 190_grants.sql does the granting and can be run again once they exist.
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

-- sql/core/020_context.sql

-- Who is asking: the app.* settings, read in one place.

create function pgaudit_wf.context_value(setting text) returns text
language sql stable strict parallel safe
as $$
    -- A setting once set locally reads '' afterwards, not null. What an index holds must fit it, whatever a client sends.
    select left(nullif(current_setting(setting, true), ''), 255)
$$;
comment on function pgaudit_wf.context_value(text) is
    'The value of a transaction-local app.* setting, at most 255 characters; null when it is not set.';

create function pgaudit_wf.context_ip() returns inet
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    ip text := nullif(current_setting('app.ip', true), '');
begin
    if ip is null then
        return null;
    end if;
    return ip::inet;
exception
    -- The write that is being audited must not fail because of a bad header; event_metadata() keeps the text.
    when invalid_text_representation then
        return null;
end
$$;
comment on function pgaudit_wf.context_ip() is
    'app.ip as an address; null when it is not set or is no address (the text is then kept in metadata.ip_text).';

create function pgaudit_wf.event_metadata(label text) returns jsonb
language sql stable parallel safe
as $$
    select jsonb_strip_nulls(jsonb_build_object(
        'label', left(label, 255),
        'reason', nullif(current_setting('app.reason', true), ''),
        'ip_text', case
            when nullif(current_setting('app.ip', true), '') is not null and pgaudit_wf.context_ip() is null
                then left(current_setting('app.ip', true), 255)
        end
    ))
$$;
comment on function pgaudit_wf.event_metadata(text) is
    'What the triggers put into metadata: the resource''s label as it is now, app.reason, and an app.ip that is no address.';

-- sql/core/030_security_audit_log.sql

-- The log: one row an event, append-only, partitioned by month.

create table pgaudit_wf.security_audit_log (
    id bigint generated always as identity,
    occurred_at timestamptz not null default clock_timestamp(),
    tx_id bigint not null default (pg_current_xact_id()::text::bigint),
    actor_id text default pgaudit_wf.context_value('app.actor_id'),
    actor_label text default nullif(current_setting('app.actor_label', true), ''),
    org_id text default pgaudit_wf.context_value('app.org_id'),
    org_label text default nullif(current_setting('app.org_label', true), ''),
    auth_method text default nullif(current_setting('app.auth_method', true), ''),
    api_key_id text default nullif(current_setting('app.api_key_id', true), ''),
    action text not null,
    resource_type text,
    resource_id text,
    outcome text not null default 'succeeded',
    captured boolean not null default false,
    diff jsonb,
    metadata jsonb not null default '{}',
    ip inet default pgaudit_wf.context_ip(),
    country text default nullif(current_setting('app.country', true), ''),
    user_agent text default left(nullif(current_setting('app.user_agent', true), ''), 1024),
    correlation_id text default pgaudit_wf.context_value('app.correlation_id'),
    db_user text not null default session_user,
    application_name text default nullif(current_setting('application_name', true), ''),
    -- tx_id first: it is the order in which readers follow the log (110_reader.sql), and inserts go to the right edge.
    primary key (tx_id, id, occurred_at),
    constraint security_audit_log_outcome check (outcome in ('succeeded', 'failed', 'denied'))
) partition by range (occurred_at);

comment on table pgaudit_wf.security_audit_log is
    'The security audit trail, one row an event. Append-only for everyone; who and from where come from the app.* settings of the transaction by column default. Partitioned by month of occurred_at.';
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
comment on column pgaudit_wf.security_audit_log.diff is 'JSON Patch (RFC 6902) from the old row to the new one; remove and replace also carry "old", so that it runs backwards.';
comment on column pgaudit_wf.security_audit_log.metadata is 'More about the event: label of the resource at that time, reason (app.reason), and what record_event() was given.';
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
    if to_regclass(format('pgaudit_wf.%I', partition_name)) is not null then
        return null;
    end if;
    execute format('create table pgaudit_wf.%I (like pgaudit_wf.security_audit_log including defaults including constraints)', partition_name);
    execute format('comment on table pgaudit_wf.%I is %L', partition_name, format('Events of %s (UTC).', to_char(first_day, 'YYYY-MM')));

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
    ahead integer;
    made text;
begin
    -- Two callers at once: the second waits, then finds the work done.
    perform pg_advisory_xact_lock(hashtext('pgaudit_wf.ensure_log_partitions'));
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

select pgaudit_wf.ensure_log_partitions();

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
    constraint action_rule_action check (action <> ''),
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
    if (check_action_rule.rule).condition is null then
        return;
    end if;
    -- The line break keeps a trailing comment in the condition from hiding the rest; no row is read.
    execute format('select from %s where (%s%s) limit 0',
        case (check_action_rule.rule).op
            when 'insert' then format('%s as new', check_action_rule.target)
            when 'update' then format('%1$s as old, %1$s as new', check_action_rule.target)
            when 'delete' then format('%s as old', check_action_rule.target)
        end,
        (check_action_rule.rule).condition, e'\n');
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
comment on column pgaudit_wf.attachment.attached_at is 'When it was attached first.';
comment on column pgaudit_wf.attachment.attached_by is 'Login role that attached it first.';

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

create function pgaudit_wf.compare_by_text(type oid) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = compare_by_text.type);
begin
    return case
        when info.typtype = 'd' then pgaudit_wf.compare_by_text(info.typbasetype)
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf.compare_by_text(info.typelem)
        when info.typtype = 'c' then exists (
            select from pg_attribute
            where attrelid = info.typrelid and attnum > 0 and not attisdropped and pgaudit_wf.compare_by_text(atttypid))
        when info.typtype in ('e', 'r', 'm') then false
        -- An extension's "=" is out of reach of a pinned search_path, and may call different values equal (citext).
        when info.typnamespace <> 'pg_catalog'::regnamespace then true
        else not exists (
            select from pg_opclass as class
            join pg_am as method on method.oid = class.opcmethod and method.amname in ('btree', 'hash')
            where class.opcintype = info.oid
                or exists (select from pg_cast where castsource = info.oid and casttarget = class.opcintype and castmethod = 'b'))
    end;
end
$$;
comment on function pgaudit_wf.compare_by_text(oid) is
    'Whether values of a type must be compared as text, for want of an equality of its own (json, xml, point, and what contains them).';

create function pgaudit_wf.output_settings(type oid) returns text[]
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    info pg_type := (select t from pg_type as t where t.oid = output_settings.type);
begin
    return case
        when info.typtype = 'd' then pgaudit_wf.output_settings(info.typbasetype)
        when info.typcategory = 'A' and info.typelem <> 0 then pgaudit_wf.output_settings(info.typelem)
        when info.typtype in ('r', 'm') then (
            select pgaudit_wf.output_settings(rngsubtype) from pg_range where info.oid in (rngtypid, rngmultitypid))
        when info.typtype = 'c' then coalesce((
            select array_agg(distinct setting)
            from pg_attribute, unnest(pgaudit_wf.output_settings(atttypid)) as setting
            where attrelid = info.typrelid and attnum > 0 and not attisdropped), '{}')
        when info.typtype = 'e' then '{}'
        when info.typname in ('date', 'timestamp', 'time', 'timetz', 'timestamptz') and info.typnamespace = 'pg_catalog'::regnamespace
            then array['timezone = ''UTC''', 'datestyle = ''ISO, MDY''']
        when info.oid = 'interval'::regtype then array['intervalstyle = ''postgres''']
        when info.oid = 'bytea'::regtype then array['bytea_output = ''hex''']
        when info.oid = 'money'::regtype then array['lc_monetary = ''C''']
        when info.oid in ('real'::regtype, 'double precision'::regtype) or info.typcategory = 'G' then array['extra_float_digits = 1']
        when info.typnamespace = 'pg_catalog'::regnamespace then '{}'
        -- An extension's type can depend on anything.
        else array['timezone = ''UTC''', 'datestyle = ''ISO, MDY''', 'intervalstyle = ''postgres''', 'bytea_output = ''hex''',
            'extra_float_digits = 1']
    end;
end
$$;
comment on function pgaudit_wf.output_settings(oid) is
    'The settings a trigger must pin so that a value of the type is written the same way in every session.';

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

create function pgaudit_wf.capture_columns(setting pgaudit_wf.attachment) returns setof pgaudit_wf.capture_column
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select
        attname::text,
        atttypid,
        attname = any ((setting).redact),
        pgaudit_wf.compare_by_text(atttypid),
        -- Only types that tend to be long; and the function that compares two out-of-line values unread is new in PostgreSQL 17.
        attlen = -1 and current_setting('server_version_num')::integer >= 170000
            and (atttypid in ('jsonb'::regtype, 'json'::regtype, 'xml'::regtype, 'bytea'::regtype, 'tsvector'::regtype)
                or (select typcategory from pg_type where oid = atttypid) = 'A')
    from pg_attribute
    where attrelid = (setting).target and attnum > 0 and not attisdropped
        and attname <> all ((setting).ignore)
        -- A virtual generated column is not in the row that a trigger sees.
        and attgenerated <> 'v'
    order by attnum
$$;
comment on function pgaudit_wf.capture_columns(pgaudit_wf.attachment) is 'The columns that the trigger of an attached table records, in their order.';

create function pgaudit_wf.changed_expression(col pgaudit_wf.capture_column) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    -- Equal TOAST ids are the same stored value: then the value, which may be long, is not read at all.
    select case when (col).toastable
            then format('((pg_column_toast_chunk_id(old.%1$I) = pg_column_toast_chunk_id(new.%1$I)) is not true and ', (col).name) else '' end
        || format(case when (col).by_text then 'old.%1$I::text is distinct from new.%1$I::text' else 'old.%1$I is distinct from new.%1$I' end, (col).name)
        || case when (col).toastable then ')' else '' end
$$;
comment on function pgaudit_wf.changed_expression(pgaudit_wf.capture_column) is 'SQL condition that is true when the column differs between old and new.';

create function pgaudit_wf.shown_expression(col pgaudit_wf.capture_column, record_name text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select format(case when (col).redacted then 'case when %1$I.%2$I is not null then ''[redacted]'' end' else '%1$I.%2$I' end, record_name, (col).name)
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
        when cardinality((setting).id_columns) > 1 then format('pgaudit_wf.bounded_key(jsonb_build_array(%s)::text)', listed)
        when short then format('%s::text', listed)
        else format('pgaudit_wf.bounded_key(%s::text)', listed)
    end
    from (
        select
            string_agg(format('%I.%I', record_name, key_column), ', ' order by position) as listed,
            bool_and(attlen > 0) as short
        from unnest((setting).id_columns) with ordinality as k (key_column, position)
        join pg_attribute on attrelid = (setting).target and attname = key_column
    ) as key_columns
$$;
comment on function pgaudit_wf.key_expression(pgaudit_wf.attachment, text) is 'SQL expression for resource_id over the given record (old or new).';

create function pgaudit_wf.bounded_key(key text) returns text
language sql immutable parallel safe
as $$
    -- An index entry has to fit a third of a page.
    select case when octet_length(key) > 1024 then 'sha256:' || encode(sha256(convert_to(key, 'UTF8')), 'hex') else key end
$$;
comment on function pgaudit_wf.bounded_key(text) is 'A key as resource_id: itself, or its SHA-256 as sha256:<hex> when it is longer than 1,024 bytes.';

create function pgaudit_wf.action_expression(setting pgaudit_wf.attachment, op text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with rule as (
        select id, position, condition, action from pgaudit_wf.action_rule
        where action_rule.resource_type = (setting).resource_type and action_rule.op = $2
    ), fallback as (
        select quote_literal((setting).resource_type || case op when 'insert' then '.created' when 'update' then '.updated' else '.deleted' end) as action
    )
    select case when exists (select from rule) then
        e'case\n' || (
            select string_agg(format(e'            when %s then %L\n',
                case when strpos(coalesce(condition, 'true'), '--') > 0 then condition || e'\n           ' else coalesce(condition, 'true') end,
                rule.action), '' order by position, id)
            from rule
        ) || format(e'            else %s\n        end', fallback.action)
        else fallback.action end
    from fallback
$$;
comment on function pgaudit_wf.action_expression(pgaudit_wf.attachment, text) is 'SQL expression for the action of an insert, update or delete, from action_rule.';

create function pgaudit_wf.row_expression(setting pgaudit_wf.attachment, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('to_jsonb(%s)', record_name)
        || coalesce((
            select format(' - %L::text[]', array_agg(attname order by attnum)) from pg_attribute
            where attrelid = (setting).target and attnum > 0 and not attisdropped
                and (attname = any ((setting).ignore) or attgenerated = 'v')
            having count(*) > 0), '')
        || coalesce((
            select format(' || jsonb_build_object(%s)', string_agg(
                format('%L, %s', (col).name, pgaudit_wf.shown_expression(col, record_name)), ', '))
            from pgaudit_wf.capture_columns(setting) as col where (col).redacted
            having count(*) > 0), '')
$$;
comment on function pgaudit_wf.row_expression(pgaudit_wf.attachment, text) is 'SQL expression for a whole row as jsonb, less the ignored and redacted columns.';

create function pgaudit_wf.update_statements(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- One statement a column: PL/pgSQL evaluates such simple expressions several times faster than one long expression.
    select coalesce(string_agg(format(
        e'        if %s then\n'
        '            event_op := jsonb_build_object(''op'', ''replace'', ''path'', %L, ''old'', %s, ''value'', %s);\n'
        '            event_diff := coalesce(event_diff || event_op, jsonb_build_array(event_op));\n'
        '        end if;\n',
        pgaudit_wf.changed_expression(col), pgaudit_wf.pointer((col).name),
        pgaudit_wf.shown_expression(col, 'old'), pgaudit_wf.shown_expression(col, 'new')
        ), ''), '')
    from pgaudit_wf.capture_columns(setting) as col
$$;
comment on function pgaudit_wf.update_statements(pgaudit_wf.attachment) is 'PL/pgSQL that collects the changed columns of an update into event_diff.';

create function pgaudit_wf.assignments(setting pgaudit_wf.attachment, record_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case when (setting).org_column is null then '' else format(e'\n        event_org := left(%I.%I::text, 255);', record_name, (setting).org_column) end
        || case when (setting).label_column is null then '' else format(e'\n        event_label := %I.%I::text;', record_name, (setting).label_column) end
$$;
comment on function pgaudit_wf.assignments(pgaudit_wf.attachment, text) is 'PL/pgSQL that takes org and label from the given record.';

create function pgaudit_wf.compiled_body(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format($body$
    if tg_op = 'UPDATE' then
%1$s        if event_diff is null then
            return null;
        end if;
        event_id := %2$s;%3$s%4$s
        event_action := %5$s;
    elsif tg_op = 'INSERT' then
        event_diff := jsonb_build_array(jsonb_build_object('op', 'add', 'path', '', 'value', %6$s));
        event_id := %2$s;%4$s
        event_action := %7$s;
    elsif tg_op = 'DELETE' then
        event_diff := jsonb_build_array(jsonb_build_object('op', 'remove', 'path', '', 'old', %8$s));
        event_id := %9$s;%10$s
        event_action := %11$s;
    end if;$body$,
        pgaudit_wf.update_statements(setting),
        pgaudit_wf.key_expression(setting, 'new'),
        (
            select format(e'\n        if %s then\n            event_metadata := jsonb_build_object(''previous_resource_id'', %s);\n        end if;',
                string_agg(format('old.%1$I is distinct from new.%1$I', key_column), ' or '), pgaudit_wf.key_expression(setting, 'old'))
            from unnest((setting).id_columns) as key_column
        ),
        pgaudit_wf.assignments(setting, 'new'),
        pgaudit_wf.action_expression(setting, 'update'),
        pgaudit_wf.row_expression(setting, 'new'),
        pgaudit_wf.action_expression(setting, 'insert'),
        pgaudit_wf.row_expression(setting, 'old'),
        pgaudit_wf.key_expression(setting, 'old'),
        pgaudit_wf.assignments(setting, 'old'),
        pgaudit_wf.action_expression(setting, 'delete'))
$$;
comment on function pgaudit_wf.compiled_body(pgaudit_wf.attachment) is 'The part of a compiled trigger function that works out what changed.';

create function pgaudit_wf.generic_row(record jsonb, known text[], ignore text[], redact text[]) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    -- A redacted column that is gone may have been renamed: then no column that was not there before is shown.
    select coalesce(jsonb_object_agg(key, case
            when jsonb_typeof(value) <> 'null' and (key = any (redact) or (not record ?& redact and key <> all (known))) then '"[redacted]"'
            else value
        end), '{}')
    from jsonb_each(record)
    where key <> all (ignore)
$$;
comment on function pgaudit_wf.generic_row(jsonb, text[], text[], text[]) is 'A row as it may be shown, for triggers of the generic form.';

create function pgaudit_wf.generic_diff(before jsonb, after jsonb, shown_before jsonb, shown_after jsonb) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_agg(jsonb_build_object('op', 'replace', 'path', pgaudit_wf.pointer(key), 'old', shown_before -> key, 'value', value) order by key)
    from jsonb_each(shown_after)
    where before -> key is distinct from after -> key
$$;
comment on function pgaudit_wf.generic_diff(jsonb, jsonb, jsonb, jsonb) is 'JSON Patch between two rows of one table, for triggers of the generic form.';

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

create function pgaudit_wf.generic_body(setting pgaudit_wf.attachment) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format($body$
    if tg_op in ('UPDATE', 'DELETE') then
        before := to_jsonb(old);
        shown_before := pgaudit_wf.generic_row(before, %1$L, %2$L, %3$L);
    end if;
    if tg_op in ('UPDATE', 'INSERT') then
        after := to_jsonb(new);
        shown_after := pgaudit_wf.generic_row(after, %1$L, %2$L, %3$L);
    end if;
    if tg_op = 'UPDATE' then
        event_diff := pgaudit_wf.generic_diff(before, after, shown_before, shown_after);
        if event_diff is null then
            return null;
        end if;
        if pgaudit_wf.generic_key(before, %4$L, tg_relid) is distinct from pgaudit_wf.generic_key(after, %4$L, tg_relid) then
            event_metadata := jsonb_build_object('previous_resource_id', pgaudit_wf.generic_key(before, %4$L, tg_relid));
        end if;
    elsif tg_op = 'INSERT' then
        event_diff := jsonb_build_array(jsonb_build_object('op', 'add', 'path', '', 'value', shown_after));
    elsif tg_op = 'DELETE' then
        event_diff := jsonb_build_array(jsonb_build_object('op', 'remove', 'path', '', 'old', shown_before));
    end if;
    if tg_level = 'ROW' then
        event_id := pgaudit_wf.generic_key(coalesce(after, before), %4$L, tg_relid);
        %5$s
        event_label := coalesce(shown_after, shown_before) ->> %6$L;
        begin
            if tg_op = 'UPDATE' then
                event_action := %7$s;
            elsif tg_op = 'INSERT' then
                event_action := %8$s;
            else
                event_action := %9$s;
            end if;
        exception
            -- A rule over a column that was renamed or dropped meanwhile must not fail the write.
            when others then
                event_action := %10$L || case tg_op when 'UPDATE' then '.updated' when 'INSERT' then '.created' else '.deleted' end;
        end;
    end if;$body$,
        (setting).columns, (setting).ignore, (setting).redact, (setting).id_columns,
        case when (setting).org_column is null then '-- no org column: app.org_id is taken'
            else format('event_org := left(coalesce(after, before) ->> %L, 255);', (setting).org_column) end,
        (setting).label_column,
        pgaudit_wf.action_expression(setting, 'update'),
        pgaudit_wf.action_expression(setting, 'insert'),
        pgaudit_wf.action_expression(setting, 'delete'),
        (setting).resource_type)
$$;
comment on function pgaudit_wf.generic_body(pgaudit_wf.attachment) is 'The part of a generic trigger function that works out what changed.';

create function pgaudit_wf.compile_capture(setting pgaudit_wf.attachment) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    settings constant text := (
        select string_agg(distinct format(e'\nset %s', pinned), '')
        from pg_attribute, unnest(pgaudit_wf.output_settings(atttypid)) as pinned
        where attrelid = (setting).target and attnum > 0 and not attisdropped);
    statements text;
    body text;
begin
    statements := case (setting).form when 'compiled' then pgaudit_wf.compiled_body(setting) else pgaudit_wf.generic_body(setting) end
        || format($insert$
    if tg_op = 'TRUNCATE' then
        event_action := %1$L;
        event_metadata := jsonb_build_object('table', %2$L);
    end if;

    insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, resource_id, captured, diff, metadata)
    values (event_org, event_action, %3$L, event_id, true, event_diff, event_metadata || pgaudit_wf.event_metadata(event_label));$insert$,
        (setting).resource_type || '.truncated', (setting).target, (setting).resource_type);

    if (setting).on_failure = 'warn' then
        statements := e'\n    begin' || replace(statements, e'\n', e'\n    ') || format($warn$
    exception
        when others then
            perform pgaudit_wf.count_failure(%1$L, tg_op, sqlstate);
            raise warning '%% of %1$s went through unrecorded (SQLSTATE %%)', tg_op, sqlstate;
    end;$warn$, (setting).target);
    end if;

    body := format($body$
-- Records every change of %1$s as %2$s; written by pgaudit_wf.attach().
-- To change it, attach the table again or edit pgaudit_wf.action_rule.
declare
    event_id text;
    event_org text%3$s;
    event_label text;
    event_action text;
    event_op jsonb;
    event_diff jsonb;
    event_metadata jsonb := '{}';%4$s
begin%5$s
    return null;
end
$body$,
        (setting).target,
        (setting).resource_type,
        case when (setting).org_column is null then ' := pgaudit_wf.context_value(''app.org_id'')' else '' end,
        case when (setting).form = 'generic' then e'\n    before jsonb;\n    after jsonb;\n    shown_before jsonb;\n    shown_after jsonb;' else '' end,
        statements);

    return format(
        e'create or replace function pgaudit_wf.%I() returns trigger\nlanguage plpgsql security definer\nset search_path = pg_catalog, pg_temp%s\nas %L',
        (setting).function_name, settings, body);
end
$$;
comment on function pgaudit_wf.compile_capture(pgaudit_wf.attachment) is 'The CREATE FUNCTION statement of an attached table''s trigger.';

-- sql/core/080_attach.sql

-- attach() and detach(): what a user calls to have a table audited.

create function pgaudit_wf.can_follow_ddl() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select count(*) = 2 from pg_event_trigger where evtname in ('pgaudit_wf_after_ddl', 'pgaudit_wf_after_drop') and evtenabled in ('O', 'A')
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
        else left(plain, 40) || '_' || left(md5(n.nspname || '.' || quote_ident(c.relname)), 12)
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

create function pgaudit_wf.check_columns(setting pgaudit_wf.attachment) returns void
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
    where name <> all ((setting).columns);
    if found then
        raise exception '% has no column "%", named in %', (setting).target, problem.name, problem.role
            using errcode = 'PA002',
                hint = format('Its columns are %s.', array_to_string(array(select quote_ident(name) from unnest((setting).columns) as name), ', '));
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
    select 'id_columns' as role, key_column as name into problem
    from unnest((setting).id_columns) as key_column
    join pg_attribute on attrelid = (setting).target and attname = key_column and attgenerated = 'v';
    if found then
        raise exception 'column "%" of % is computed when read, and cannot be in id_columns', problem.name, (setting).target
            using errcode = 'PA002', hint = 'Name stored columns.';
    end if;
end
$$;
comment on function pgaudit_wf.check_columns(pgaudit_wf.attachment) is 'Raises PA002 naming the column that the settings get wrong.';

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
    if attach.on_failure not in ('abort', 'warn') then
        raise exception 'on_failure is "%": it must be abort or warn', attach.on_failure using errcode = 'PA008';
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
    if 'updated_at' <> all (setting.columns) then
        setting.ignore := array_remove(setting.ignore, 'updated_at');
    end if;

    perform pgaudit_wf.check_columns(setting);
    perform pgaudit_wf.install_capture(setting);

    setting.attached_at := coalesce(setting.attached_at, now());
    setting.attached_by := coalesce(setting.attached_by, session_user);
    if known then
        delete from pgaudit_wf.attachment as a where a.target = attach.target;
    end if;
    insert into pgaudit_wf.attachment select setting.*;
    if before is distinct from to_jsonb(setting) then
        insert into pgaudit_wf.attachment_history (target, resource_type, change, detail)
        values (setting.target, setting.resource_type, case when known then 'changed' else 'attached' end,
            to_jsonb(setting) - '{target,columns,attached_at,attached_by}'::text[]);
    end if;
    perform pgaudit_wf.ensure_log_partitions();
end
$$;
comment on function pgaudit_wf.attach(regclass, text, text[], text, text, text[], text[], text) is
    'Has every change of a table recorded in security_audit_log from now on. Called again it changes the named settings in place; one that is not named stays as it was, '''' or ''{}'' clears it. '
    'At first: resource_type is the table''s name; id_columns its primary key; org_column org_id or organization_id if there (else events take app.org_id); label_column none; '
    'ignore {updated_at} (columns left out of the log); redact none (columns shown as "[redacted]"); on_failure abort (or warn: let the change through and count the failure). '
    'Raises PA002 (column), PA003 (rule), PA004 (table), PA008 (argument); the table then stays as it was.';

create function pgaudit_wf.install_capture(setting pgaudit_wf.attachment) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    rule pgaudit_wf.action_rule;
    owner constant name := (select nspowner::regrole::text from pg_namespace where nspname = 'pgaudit_wf');
    leaf regclass;
begin
    for rule in select r.* from pgaudit_wf.action_rule as r where r.resource_type = (setting).resource_type order by r.position, r.id loop
        perform pgaudit_wf.check_action_rule((setting).target, rule);
    end loop;
    -- Our own DDL must not set off the event triggers that follow the application's.
    perform set_config('pgaudit_wf.compiling', 'on', true);

    execute pgaudit_wf.compile_capture(setting);
    execute format('comment on function pgaudit_wf.%I() is %L', (setting).function_name, format('Records the changes of %s.', (setting).target));
    execute format('revoke all on function pgaudit_wf.%I() from public', (setting).function_name);
    if owner <> quote_ident(current_user) then
        execute format('alter function pgaudit_wf.%I() owner to %s', (setting).function_name, owner);
    end if;

    execute format('create or replace trigger pgaudit_wf_insert after insert on %s for each row execute function pgaudit_wf.%I()',
        (setting).target, (setting).function_name);
    -- No WHEN clause: PostgreSQL parses and plans it anew for each statement, which costs more than to enter the function and
    -- leave it again (12 against 4 µs), and its columns could not be dropped or retyped.
    execute format('create or replace trigger pgaudit_wf_update after update on %s for each row execute function pgaudit_wf.%I()',
        (setting).target, (setting).function_name);
    execute format('create or replace trigger pgaudit_wf_delete after delete on %s for each row execute function pgaudit_wf.%I()',
        (setting).target, (setting).function_name);
    -- "Always": also in a session that calls itself a replica.
    execute format('alter table %s enable always trigger pgaudit_wf_insert, enable always trigger pgaudit_wf_update, enable always trigger pgaudit_wf_delete',
        (setting).target);
    for leaf in select pgaudit_wf.leaf_tables((setting).target) loop
        execute format('create or replace trigger pgaudit_wf_truncate after truncate on %s for each statement execute function pgaudit_wf.%I()',
            leaf, (setting).function_name);
        execute format('alter table %s enable always trigger pgaudit_wf_truncate', leaf);
    end loop;

    perform set_config('pgaudit_wf.compiling', 'off', true);
end
$$;
comment on function pgaudit_wf.install_capture(pgaudit_wf.attachment) is 'Compiles the trigger function of an attached table and puts the triggers in place.';

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

create function pgaudit_wf.detach(target regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
    leaf regclass;
begin
    execute format('lock table only %s in access exclusive mode', detach.target);
    delete from pgaudit_wf.attachment as a where a.target = detach.target returning a.* into setting;
    if not found then
        raise exception '% is not attached', detach.target
            using errcode = 'PA005', hint = 'The view pgaudit_wf.attached lists what is.';
    end if;
    perform set_config('pgaudit_wf.compiling', 'on', true);
    execute format('drop trigger if exists pgaudit_wf_insert on %s', detach.target);
    execute format('drop trigger if exists pgaudit_wf_update on %s', detach.target);
    execute format('drop trigger if exists pgaudit_wf_delete on %s', detach.target);
    for leaf in select pgaudit_wf.leaf_tables(detach.target) loop
        execute format('drop trigger if exists pgaudit_wf_truncate on %s', leaf);
    end loop;
    execute format('drop function pgaudit_wf.%I()', setting.function_name);
    perform set_config('pgaudit_wf.compiling', 'off', true);
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
        perform pgaudit_wf.install_capture(setting);
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
    (select count(*) from pgaudit_wf.capture_failure as f where f.target = a.target::text) as failures,
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

-- A table changes under its compiled trigger: event triggers recompile it in the transaction of the DDL.

create function pgaudit_wf.renamed(name text, renames jsonb) returns text
language sql immutable parallel safe
as $$ select coalesce(renames ->> name, name) $$;
comment on function pgaudit_wf.renamed(text, jsonb) is 'A column''s name after the renames ({old: new}).';

create function pgaudit_wf.rename_in_rules(resource_type text, old_name text, new_name text) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    update pgaudit_wf.action_rule
    set condition = regexp_replace(condition, pattern, replacement, 'gi')
    from (
        select
            format('\m(old|new)\s*\.\s*(%s%s)',
                case when old_name ~ '^[a-z_][a-z0-9_$]*$' then old_name || '\M|' else '' end,
                regexp_replace(format('"%s"', replace(old_name, '"', '""')), '([][\\.^$*+?(){}|-])', '\\\1', 'g')) as pattern,
            '\1.' || replace(quote_ident(new_name), '\', '\\') as replacement
    ) as rename
    where action_rule.resource_type = rename_in_rules.resource_type and condition ~* pattern
$$;
comment on function pgaudit_wf.rename_in_rules(text, text, text) is 'Follows a renamed column in the conditions of the rules of a resource type.';

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
        select jsonb_build_object(name, recompile.renamed_to) into strict renames
        from unnest(setting.columns) as name where name <> all (columns_now);
    end if;
    altered := jsonb_strip_nulls(jsonb_build_object(
        'renamed', nullif(renames, '{}'),
        'added', (
            select jsonb_agg(name) from unnest(columns_now) as name
            where name <> all (setting.columns) and name is distinct from recompile.renamed_to),
        'dropped', (
            select jsonb_agg(name) from unnest(setting.columns) as name
            where name <> all (columns_now) and not renames ? name)));

    setting.columns := columns_now;
    setting.id_columns := array(select pgaudit_wf.renamed(name, renames) from unnest(setting.id_columns) with ordinality as k (name, position) order by position);
    setting.org_column := pgaudit_wf.renamed(setting.org_column, renames);
    setting.label_column := pgaudit_wf.renamed(setting.label_column, renames);
    setting.ignore := array(select pgaudit_wf.renamed(name, renames) from unnest(setting.ignore) as name where pgaudit_wf.renamed(name, renames) = any (columns_now));
    setting.redact := array(select pgaudit_wf.renamed(name, renames) from unnest(setting.redact) as name where pgaudit_wf.renamed(name, renames) = any (columns_now));
    if not columns_now @> setting.id_columns then
        raise exception '% is audited, and a column that identifies its rows (%) cannot be dropped', recompile.target, array_to_string(setting.id_columns, ', ')
            using errcode = 'PA002', hint = format('Attach it by other columns first: select pgaudit_wf.attach(%L, id_columns => …).', recompile.target);
    end if;
    setting.org_column := case when setting.org_column = any (columns_now) then setting.org_column end;
    setting.label_column := case when setting.label_column = any (columns_now) then setting.label_column end;
    update pgaudit_wf.attachment as a
    set (id_columns, org_column, label_column, ignore, redact, columns)
        = (setting.id_columns, setting.org_column, setting.label_column, setting.ignore, setting.redact, setting.columns)
    where a.target = recompile.target;

    perform pgaudit_wf.rename_in_rules(setting.resource_type, key, value) from jsonb_each_text(renames);
    perform pgaudit_wf.install_capture(setting);
    if altered <> '{}' then
        insert into pgaudit_wf.attachment_history (target, resource_type, change, detail)
        values (setting.target, setting.resource_type, 'altered', altered);
    end if;
exception
    when sqlstate 'PA003' then
        raise exception '% is audited, and this change breaks a rule: %', recompile.target, sqlerrm
            using errcode = 'PA003', hint = 'Change or delete the rule in pgaudit_wf.action_rule first.';
end
$$;
comment on function pgaudit_wf.recompile(regclass, text) is
    'Compiles an attached table''s trigger anew after DDL; its settings and rules follow a column that was renamed.';

create function pgaudit_wf.after_ddl() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    command record;
    concerned regclass;
begin
    if current_setting('pgaudit_wf.compiling', true) = 'on' then
        return;
    end if;
    for command in
        select done.objid, done.objsubid from pg_event_trigger_ddl_commands() as done where done.classid = 'pg_class'::regclass
    loop
        for concerned in
            select a.target from pgaudit_wf.attachment as a
            where a.form = 'compiled'
                and (a.target = command.objid
                    or a.target in (select relid from pg_partition_tree(command.objid))
                    or a.target in (select relid from pg_partition_ancestors(command.objid)))
            order by a.target::oid
        loop
            -- Only RENAME COLUMN reports a column; it says the new name.
            perform pgaudit_wf.recompile(concerned, (select attname from pg_attribute where attrelid = command.objid and attnum = nullif(command.objsubid, 0)));
        end loop;
    end loop;
end
$$;
comment on function pgaudit_wf.after_ddl() is 'Event trigger after ALTER TABLE and CREATE TABLE: recompiles the attached tables concerned.';

create function pgaudit_wf.after_drop() returns event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    setting pgaudit_wf.attachment;
    broken regclass;
begin
    if current_setting('pgaudit_wf.compiling', true) = 'on' then
        return;
    end if;
    for setting in
        delete from pgaudit_wf.attachment as a
        where a.target in (select dropped.objid from pg_event_trigger_dropped_objects() as dropped where dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0)
        returning a.*
    loop
        insert into pgaudit_wf.attachment_history (target, resource_type, change)
        select dropped.object_identity, setting.resource_type, 'dropped'
        from pg_event_trigger_dropped_objects() as dropped
        where dropped.objid = setting.target and dropped.classid = 'pg_class'::regclass and dropped.objsubid = 0;
        perform set_config('pgaudit_wf.compiling', 'on', true);
        execute format('drop function if exists pgaudit_wf.%I()', setting.function_name);
        perform set_config('pgaudit_wf.compiling', 'off', true);
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
comment on function pgaudit_wf.after_drop() is 'Event trigger: forgets attached tables that were dropped, recompiles those that lost a column by CASCADE.';

do $$
begin
    create event trigger pgaudit_wf_after_ddl on ddl_command_end when tag in ('ALTER TABLE', 'CREATE TABLE') execute function pgaudit_wf.after_ddl();
    create event trigger pgaudit_wf_after_drop on sql_drop execute function pgaudit_wf.after_drop();
    alter event trigger pgaudit_wf_after_ddl enable always;
    alter event trigger pgaudit_wf_after_drop enable always;
exception
    when insufficient_privilege then
        raise notice '% may not create event triggers: attach() will compile the generic form, which is slower but needs none', current_user;
end
$$;

-- end of what is generated

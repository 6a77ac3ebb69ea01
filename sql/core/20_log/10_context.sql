-- Who is asking: the app.* settings, or app.context with all of them in one.

create function pgaudit_wf._context_value(setting text) returns text
language sql stable parallel safe
as $$
    -- A setting that was once set locally reads '' afterwards, not null. The value must fit an index entry, whatever a client sends.
    -- Not strict: then PostgreSQL would not inline it into the insert. The cast cuts as left() does, and is free for what fits.
    select nullif(current_setting(setting, true), '')::varchar(255)::text
$$;
comment on function pgaudit_wf._context_value(text) is
    'The value of a transaction-local app.* setting, at most 255 characters; null when it is not set.';

create function pgaudit_wf._context_reason() returns text
language sql stable parallel safe
as $$ select nullif(current_setting('app.reason', true), '')::varchar(4096)::text $$;
comment on function pgaudit_wf._context_reason() is 'app.reason, at most 4,096 characters; null when it is not set.';

create function pgaudit_wf._parse_ip(address text) returns inet
language plpgsql immutable strict
as $$
begin
    return address::pg_catalog.inet;
exception
    -- The write that is being audited must not fail because of a bad header.
    when invalid_text_representation then
        raise warning 'app.ip is not a valid address and is not recorded';
        return null;
end
$$;
comment on function pgaudit_wf._parse_ip(text) is 'The text as an address; null, with a warning, if it is not valid.';

create function pgaudit_wf._context_ip() returns inet
language sql stable
as $$
    -- Only a transaction that sets an address pays for the subtransaction in which it is parsed. No address is longer than 64
    -- characters, and parsing a text of 256 MB would fail for lack of memory, which nothing catches.
    select case when current_setting('app.ip', true) <> '' then pgaudit_wf._parse_ip(current_setting('app.ip', true)::varchar(64)) end
$$;
comment on function pgaudit_wf._context_ip() is 'app.ip as an address; null when it is not set or not valid.';

create function pgaudit_wf._context_names() returns text[]
language sql immutable parallel safe
as $$
    select '{actor_id,actor_label,actor_type,on_behalf_of,client,org_id,org_label,auth_method,api_key_id,ip,country,user_agent,'
        'correlation_id,reason,attestation}'::text[]
$$;
comment on function pgaudit_wf._context_names() is 'The settings app.<name>, and members of app.context, that say who is asking.';

create function pgaudit_wf._parse_context(sent text) returns jsonb
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    context jsonb;
begin
    if octet_length(sent) <= 65536 then
        context := sent;
    end if;
    return case when jsonb_typeof(context) = 'object' then context end;
exception
    -- The write that is being audited must not fail because of it.
    when data_exception or program_limit_exceeded or statement_too_complex then
        return null;
end
$$;
comment on function pgaudit_wf._parse_context(text) is 'app.context as an object; null if it is not one, or has more than 64 KiB.';

create function pgaudit_wf._context_text(name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(nullif(current_setting('app.' || name, true), ''),
        case when current_setting('app.context', true) <> '' then
            nullif(pgaudit_wf._parse_context(current_setting('app.context', true)) ->> name, '') end)
$$;
comment on function pgaudit_wf._context_text(text) is
    'The value of app.<name> or, if that is not set, of the member of app.context; null when neither is set. '
    'For what is not on the write path: there, _unpack_context() comes first.';

create function pgaudit_wf._is_packed() returns boolean
language sql stable parallel safe
as $$
    -- Without "set", so that PostgreSQL inlines it: triggers ask before they call _unpack_context().
    select current_setting('app.context', true) is distinct from current_setting('pgaudit_wf.unpacked', true)
$$;
comment on function pgaudit_wf._is_packed() is 'Whether app.context has been set since it was last unpacked in this session.';

create function pgaudit_wf._unpack_context() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    sent constant text := coalesce(current_setting('app.context', true), '');
    context jsonb;
    before jsonb;
    name text;
    known text;
begin
    if not pgaudit_wf._is_packed() then
        return;
    end if;
    context := pgaudit_wf._parse_context(nullif(sent, ''));
    -- What an earlier app.context of this transaction was unpacked to, which is not what somebody has set apart from it.
    before := pgaudit_wf._parse_context(nullif(current_setting('pgaudit_wf.unpacked', true), ''));
    foreach name in array pgaudit_wf._context_names() loop
        known := coalesce(current_setting('app.' || name, true), '');
        if known = '' or known = before ->> name then
            if known <> coalesce(context ->> name, '') then
                perform set_config('app.' || name, coalesce(context ->> name, ''), true);
            end if;
        end if;
    end loop;
    perform set_config('pgaudit_wf.unpacked', sent, true);
    if sent <> '' and context is null then
        raise warning 'app.context is not a JSON object of at most 64 KiB and is not recorded';
    end if;
end
$$;
comment on function pgaudit_wf._unpack_context() is
    'Sets, for the transaction, each app.<name> that is not set apart to its member of app.context: once, '
    'so that the column defaults of the log need not look for it with every event.';

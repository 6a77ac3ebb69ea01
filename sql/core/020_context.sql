-- Who is asking: the app.* settings, read in one place.

create function pgaudit_wf.context_value(setting text) returns text
language sql stable parallel safe
as $$
    -- A setting once set locally reads '' afterwards, not null. What an index holds must fit it, whatever a client sends.
    -- Not strict: then PostgreSQL would not inline it into the insert.
    select left(nullif(current_setting(setting, true), ''), 255)
$$;
comment on function pgaudit_wf.context_value(text) is
    'The value of a transaction-local app.* setting, at most 255 characters; null when it is not set.';

create function pgaudit_wf.parse_ip(address text) returns inet
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return address::inet;
exception
    -- The write that is being audited must not fail because of a bad header.
    when invalid_text_representation then
        raise warning 'app.ip is no address and is not recorded';
        return null;
end
$$;
comment on function pgaudit_wf.parse_ip(text) is 'The text as an address; null, with a warning, if it is none.';

create function pgaudit_wf.context_ip() returns inet
language sql stable parallel safe
as $$
    -- Catching an error costs a subtransaction, which a plain IPv4 address does not need.
    select case
        when coalesce(current_setting('app.ip', true), '') = '' then null
        when current_setting('app.ip', true) ~ '^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])$'
            then current_setting('app.ip', true)::inet
        else pgaudit_wf.parse_ip(current_setting('app.ip', true))
    end
$$;
comment on function pgaudit_wf.context_ip() is 'app.ip as an address; null when it is not set or is no address.';

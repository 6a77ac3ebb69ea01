-- Who is asking: the app.* settings, read in one place.

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

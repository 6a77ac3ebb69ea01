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

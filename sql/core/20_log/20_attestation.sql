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
comment on table pgaudit_wf.attestation_key is
    'Secrets with which applications attest who is asking. For the owner only: anyone who reads them can impersonate any actor.';
comment on column pgaudit_wf.attestation_key.key_id is 'Name of the key; it comes before the colon in app.attestation.';
comment on column pgaudit_wf.attestation_key.inner_pad is 'The key, xor 0x36 (RFC 2104, section 2).';
comment on column pgaudit_wf.attestation_key.outer_pad is 'The key, xor 0x5c.';
comment on column pgaudit_wf.attestation_key.created_at is 'When it was added.';
comment on column pgaudit_wf.attestation_key.retired_at is 'When it was retired; null while it is in use.';

create function pgaudit_wf._pad_key(secret bytea, pad integer) returns bytea
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    -- RFC 2104: a key longer than a block is hashed first, a shorter one filled with zeros.
    padded bytea := case when length(secret) > 64 then sha256(secret) else secret end;
begin
    padded := padded || decode(repeat('00', 64 - length(padded)), 'hex');
    for i in 0 .. 63 loop
        padded := set_byte(padded, i, get_byte(padded, i) # pad);
    end loop;
    return padded;
end
$$;
comment on function pgaudit_wf._pad_key(bytea, integer) is 'An HMAC key filled to a block of 64 bytes, each xor pad (RFC 2104, section 2).';

create function pgaudit_wf.add_attestation_key(key_id text, secret bytea) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if coalesce(length(add_attestation_key.secret), 0) < 32 then
        raise exception 'the secret must have at least 32 bytes'
            using errcode = 'PA008', hint = 'Generate one with: openssl rand -hex 32';
    end if;
    insert into pgaudit_wf.attestation_key (key_id, inner_pad, outer_pad)
    values (
        add_attestation_key.key_id,
        pgaudit_wf._pad_key(add_attestation_key.secret, 54), pgaudit_wf._pad_key(add_attestation_key.secret, 92));
end
$$;
comment on function pgaudit_wf.add_attestation_key(text, bytea) is
    'Lets contexts be attested with a secret of at least 32 bytes (request_context(…, attest=AttestationKey(key_id, secret))). '
    'Raises PA008 on a shorter one.';

create function pgaudit_wf.retire_attestation_key(key_id text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgaudit_wf.attestation_key as k set retired_at = now() where k.key_id = retire_attestation_key.key_id and k.retired_at is null;
    if not found then
        raise exception 'attestation key "%" does not exist or is already retired', retire_attestation_key.key_id using errcode = 'PA008';
    end if;
end
$$;
comment on function pgaudit_wf.retire_attestation_key(text) is
    'Stops accepting a key; what it has attested stays attested. Raises PA008 for an unknown one.';

create function pgaudit_wf._attested_part(value text) returns text
language sql immutable parallel safe
as $$ select case when value = '' then '-' else coalesce(octet_length(value) || ':' || value, '-') end $$;
comment on function pgaudit_wf._attested_part(text) is
    'A value as it is signed: its length in bytes, a colon and the value; "-" for none, so that no two contexts are signed alike.';

create function pgaudit_wf._check_attestation(attestation text, bound_to text) returns boolean
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    message constant bytea := convert_to(
        'pgaudit_wf.attest.v3'
            || pgaudit_wf._attested_part(current_setting('app.actor_id', true))
            || pgaudit_wf._attested_part(current_setting('app.actor_type', true))
            || pgaudit_wf._attested_part(current_setting('app.on_behalf_of', true))
            || pgaudit_wf._attested_part(current_setting('app.client', true))
            || pgaudit_wf._attested_part(current_setting('app.org_id', true))
            || pgaudit_wf._attested_part(current_setting('app.correlation_id', true))
            || pgaudit_wf._attested_part(bound_to), 'UTF8');
    given constant text := split_part(attestation, ':', 2);
    expected text;
begin
    select encode(sha256(k.outer_pad || sha256(k.inner_pad || message)), 'hex') into expected
    from pgaudit_wf.attestation_key as k
    where k.key_id = split_part(attestation, ':', 1) and k.retired_at is null;
    -- Hashes are compared, so that timing reveals nothing about the expected value.
    return coalesce(sha256(convert_to(given, 'UTF8')) = sha256(convert_to(expected, 'UTF8')), false);
end
$$;
comment on function pgaudit_wf._check_attestation(text, text) is
    'Whether an attestation (key_id:hex) is HMAC-SHA256 over the context''s actor, its type, in whose name, client, organization and '
    'correlation id, and what it is bound to: a transaction or an attempt. Stated in docs/reference/context.md.';

create function pgaudit_wf._context_attested() returns boolean
language sql stable
as $$
    select case
        -- Of this transaction: what other sessions of the login can see of it, in pg_stat_activity or a log, they cannot use.
        when current_setting('app.attestation', true) <> '' then pgaudit_wf._check_attestation(
            current_setting('app.attestation', true), pg_backend_pid() || '.' || (extract(epoch from now()) * 1000000)::bigint)
        else false
    end
$$;
comment on function pgaudit_wf._context_attested() is
    'Whether the application has proved that it set the context; false when it did not try.';

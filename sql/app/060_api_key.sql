-- Keys of a person and keys of an org, distinguished by org_id, in one table: they are looked up by
-- one hash on each call.

create table public.api_key (
    id text primary key default gen_random_uuid()::text check (id <> ''),
    org_id text references public.organization on delete cascade,
    user_id text not null references public.app_user on delete cascade,
    name text not null check (name <> ''),
    key_prefix text not null,
    key_hash text not null unique,
    scopes text[] not null default '{}',
    last_used_at timestamptz,
    expires_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz not null default now(),
    constraint api_key_prefix_tells_kind check (
        starts_with(key_prefix, case when org_id is null then 'wfb_' else 'kh_' end)
    ),
    -- A handle is shown in trails and e-mails: a whole key put here by mistake would be a leak.
    constraint api_key_prefix_is_no_key check (length(key_prefix) <= 16)
);

create index api_key_org_id_idx on public.api_key (org_id) where org_id is not null;
create index api_key_user_id_idx on public.api_key (user_id);

comment on table public.api_key is
    'API keys: a person''s own (wfb_, org_id null) and an org''s (kh_). Audited as api_key.* and '
    'org_api_key.*: .created, .renamed, .rotated, .revoked (by revoked_at or by DELETE), '
    '.reinstated, .updated, .deleted (DELETE of one revoked before).';
comment on column public.api_key.id is 'Handle of the key, which is not secret.';
comment on column public.api_key.org_id is 'The org the key acts for. Null: a person''s own key.';
comment on column public.api_key.user_id is
    'Who made the key. A deleted person''s keys go with the account, an org''s too: nobody is left '
    'who answers for them.';
comment on column public.api_key.name is 'What its maker calls it.';
comment on column public.api_key.key_prefix is
    'First characters of the key, to recognize it by: wfb_… or kh_…, at most 16.';
comment on column public.api_key.key_hash is 'Hash of the key. Secret: never in the log.';
comment on column public.api_key.scopes is 'What the key may do. Empty: all that its maker may.';
comment on column public.api_key.last_used_at is
    'When the key was last used. Changes on each call, so not audited.';
comment on column public.api_key.expires_at is
    'When the key expires; null: never.';
comment on column public.api_key.revoked_at is 'When the key was revoked. Null: not revoked.';
comment on column public.api_key.created_at is 'When the key was made.';

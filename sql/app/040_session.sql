-- A signed-in browser or device.

create table public.session (
    id text primary key default gen_random_uuid()::text check (id <> ''),
    user_id text not null references public.app_user on delete cascade,
    token_hash text not null unique,
    ip inet,
    user_agent text,
    created_at timestamptz not null default now(),
    last_seen_at timestamptz not null default now(),
    expires_at timestamptz not null default now() + interval '30 days',
    revoked_at timestamptz,
    check (expires_at > created_at)
);

create index session_user_id_idx on public.session (user_id);
create index session_expires_at_idx on public.session (expires_at);

comment on table public.session is
    'A sign-in. Audited: session.created, session.updated, session.revoked (by revoked_at or by '
    'DELETE), session.expired (DELETE of one that had run out), session.deleted (DELETE of one '
    'revoked before).';
comment on column public.session.id is 'Handle of the session, which is not secret.';
comment on column public.session.user_id is 'Who signed in.';
comment on column public.session.token_hash is
    'Hash of the cookie''s token. Secret: never in the log.';
comment on column public.session.ip is 'Address the sign-in came from.';
comment on column public.session.user_agent is 'Browser the sign-in came from, in its own words.';
comment on column public.session.created_at is 'When the person signed in.';
comment on column public.session.last_seen_at is
    'When the session was last used. Changes on each request, so not audited.';
comment on column public.session.expires_at is 'When the session expires.';
comment on column public.session.revoked_at is
    'When the session was ended before its time. Null: not revoked.';

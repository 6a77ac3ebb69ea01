-- A person's account. It belongs to no org: a person may be a member of several.

create table public.app_user (
    id text primary key default gen_random_uuid()::text check (id <> ''),
    email text not null check (position('@' in email) > 1),
    name text,
    password_hash text,
    deactivated_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

-- Two spellings of one address must not be two accounts.
create unique index app_user_email_key on public.app_user (lower(email));

comment on table public.app_user is
    'An account of the reference application. Audited: account.created, account.updated, '
    'account.deactivated, account.reactivated, account.deleted, email.changed, password.changed, '
    'password.reset.';
comment on column public.app_user.id is
    'Text, as identity providers hand it out; a UUID if none is given.';
comment on column public.app_user.email is
    'Address the account signs in with; unique whatever its case.';
comment on column public.app_user.name is 'Name shown to people. Null until the person gives one.';
comment on column public.app_user.password_hash is
    'Salted hash of the password. Null: signs in by another provider only. Secret: never in the '
    'log.';
comment on column public.app_user.deactivated_at is
    'Since when the account may not sign in. Null: active.';
comment on column public.app_user.created_at is 'When the person signed up.';
comment on column public.app_user.updated_at is
    'When the application last saved the row. Not audited.';

-- A person's second factor: one TOTP secret and the codes for the day the phone is lost.

create table public.two_factor (
    user_id text primary key references public.app_user on delete cascade,
    secret text not null,
    backup_codes text[] not null default '{}',
    enabled_at timestamptz default now(),
    created_at timestamptz not null default now()
);

comment on table public.two_factor is
    'TOTP enrolment of an account. Audited: totp.enrolled, totp.disabled, totp.enrollment_started, '
    'totp.enrollment_canceled, backup_codes.regenerated, backup_codes.used.';
comment on column public.two_factor.user_id is 'The account it protects.';
comment on column public.two_factor.secret is 'Encrypted TOTP seed. Secret: never in the log.';
comment on column public.two_factor.backup_codes is
    'Hashes of the unused backup codes; using one removes it. Secret: never in the log.';
comment on column public.two_factor.enabled_at is
    'Since when a code is asked for at sign-in. Null: the person has not yet confirmed a first '
    'code.';
comment on column public.two_factor.created_at is 'When enrolment began.';

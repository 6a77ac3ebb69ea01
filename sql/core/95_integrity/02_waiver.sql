-- What is left unrecorded on purpose.

create table pgaudit_wf.waiver (
    subject text primary key,
    reason text not null,
    waived_at timestamptz not null default now(),
    waived_by text not null default session_user,
    constraint waiver_reason check (reason ~ '[^[:space:]]' and length(reason) <= 4096)
);
comment on table pgaudit_wf.waiver is
    'What pgaudit-wf coverage does not complain about, with the reason. Its changes are events, as those of any setting are.';
comment on column pgaudit_wf.waiver.subject is
    'A table (public.cache), a column (public.cache.token) or a login (role importer), quoted as in SQL where it needs to be. '
    'A table that is renamed is no longer waived.';
comment on column pgaudit_wf.waiver.reason is 'Why nothing is recorded there.';
comment on column pgaudit_wf.waiver.waived_at is 'Since when.';
comment on column pgaudit_wf.waiver.waived_by is 'The login that said so.';

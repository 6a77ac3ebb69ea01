-- The tenant. Its own id is the org of its events.

create table public.organization (
    id text primary key default gen_random_uuid()::text check (id <> ''),
    name text not null check (name <> ''),
    slug text unique check (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$'),
    deactivated_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

comment on table public.organization is
    'A tenant of the reference application. Audited: org.created, org.updated, org.deactivated, '
    'org.reactivated, org.deleted.';
comment on column public.organization.id is
    'Text, as identity providers hand it out; a UUID if none is given.';
comment on column public.organization.name is 'Name shown to people.';
comment on column public.organization.slug is
    'Name in addresses: lower-case letters, digits and single hyphens. Null: reached by id.';
comment on column public.organization.deactivated_at is
    'Since when the org is switched off. Null: active.';
comment on column public.organization.created_at is 'When the org came to be.';
comment on column public.organization.updated_at is
    'When the application last saved the row. Not audited.';

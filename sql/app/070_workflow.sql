-- What the product is about: a graph of nodes and edges that runs, and that its org may offer on
-- the marketplace.

create table public.workflow (
    id uuid primary key default gen_random_uuid(),
    org_id text not null references public.organization on delete cascade,
    user_id text references public.app_user on delete set null,
    name text not null,
    description text,
    visibility text not null default 'private' check (visibility in ('private', 'org', 'public')),
    enabled boolean not null default false,
    listed boolean not null default false,
    listed_slug text unique check (listed_slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$'),
    listed_at timestamptz,
    listing_description text,
    listing_category text,
    listing_price numeric(12, 2) check (listing_price >= 0),
    listing_currency text not null default 'USD' check (listing_currency ~ '^[A-Z]{3}$'),
    nodes jsonb not null default '[]',
    edges jsonb not null default '[]',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create index workflow_org_id_idx on public.workflow (org_id);
create index workflow_user_id_idx on public.workflow (user_id);
create index workflow_listing_idx on public.workflow (listing_category, listed_at desc)
where listed;

comment on table public.workflow is
    'A workflow. Audited: workflow.created, workflow.updated, workflow.enabled, workflow.disabled, '
    'workflow.listed, workflow.unlisted, workflow.listing_updated, workflow.deleted.';
comment on column public.workflow.id is 'Made by the database if the application gives none.';
comment on column public.workflow.org_id is 'The org it belongs to.';
comment on column public.workflow.user_id is 'Who made it. Null: that account is deleted.';
comment on column public.workflow.name is 'Name shown to people.';
comment on column public.workflow.description is 'What it does, for the org''s own people.';
comment on column public.workflow.visibility is
    'Who may open it: private (its maker), org (every member), public (anyone).';
comment on column public.workflow.enabled is 'Whether its triggers start it.';
comment on column public.workflow.listed is 'Whether the marketplace offers it.';
comment on column public.workflow.listed_slug is
    'The listing''s name in addresses; kept while unlisted, so that old links work again. Null: '
    'reached by id.';
comment on column public.workflow.listed_at is 'When it was last put on the marketplace.';
comment on column public.workflow.listing_description is
    'What the marketplace says about it. Null: the description.';
comment on column public.workflow.listing_category is 'Shelf of the marketplace it stands on.';
comment on column public.workflow.listing_price is
    'Price of one run in listing_currency. Null: free.';
comment on column public.workflow.listing_currency is 'ISO 4217 code of the price.';
comment on column public.workflow.nodes is
    'The graph''s nodes, a JSON array as the editor saves it.';
comment on column public.workflow.edges is
    'The graph''s connections, a JSON array as the editor saves it.';
comment on column public.workflow.created_at is 'When it was made.';
comment on column public.workflow.updated_at is
    'When the application last saved the row. Not audited.';

-- Wallets that an org pays and is paid with: its own, and agentic ones that workflows sign for by
-- an HMAC secret.

create table public.wallet (
    id text primary key default gen_random_uuid()::text check (id <> ''),
    org_id text not null references public.organization on delete cascade,
    kind text not null default 'org' check (kind in ('org', 'agentic')),
    address text not null,
    hmac_secret text,
    key_version integer not null default 1 check (key_version > 0),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint wallet_hmac_is_agentic check (kind = 'agentic' or hmac_secret is null)
);

create index wallet_org_id_idx on public.wallet (org_id);

comment on table public.wallet is
    'A wallet. Audited as org_wallet.* and agentic_wallet.*: .created, .updated, .deleted, and '
    'agentic_wallet.hmac_rotated.';
comment on column public.wallet.id is 'Handle of the wallet.';
comment on column public.wallet.org_id is 'The org it belongs to.';
comment on column public.wallet.kind is
    'org: people of the org approve each payment; agentic: workflows sign with hmac_secret.';
comment on column public.wallet.address is 'Its public address.';
comment on column public.wallet.hmac_secret is
    'Encrypted secret that workflows sign with; agentic wallets only. Secret: never in the log.';
comment on column public.wallet.key_version is
    'Counts the secrets: a rotation adds one, so a signature says which secret it was made with.';
comment on column public.wallet.created_at is 'When the wallet was made.';
comment on column public.wallet.updated_at is
    'When the application last saved the row. Not audited.';

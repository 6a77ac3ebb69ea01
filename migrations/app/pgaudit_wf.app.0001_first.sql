-- depends: pgaudit_wf.core.0001_first

-- generated from sql/ by make migration: edit sql/, not this

-- sql/app/010_organization.sql

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

-- sql/app/020_app_user.sql

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

-- sql/app/030_member.sql

-- Who belongs to which org, from the invitation on. An invitation is a member that has not joined
-- yet, so that
-- who was invited, in which role and by whom stays one story about one resource.

create table public.member (
    org_id text not null references public.organization on delete cascade,
    user_id text not null references public.app_user on delete cascade,
    role text not null default 'member' check (role in ('owner', 'admin', 'member')),
    status text not null default 'active' check (status in ('invited', 'active')),
    created_at timestamptz not null default now(),
    primary key (org_id, user_id)
);

create index member_user_id_idx on public.member (user_id);

comment on table public.member is
    'Membership of a person in an org. Audited: member.invited, member.joined, member.role_changed, '
    'member.removed.';
comment on column public.member.org_id is 'The org.';
comment on column public.member.user_id is 'The person.';
comment on column public.member.role is
    'owner and admin may read the org''s audit trail, member may not.';
comment on column public.member.status is
    'invited until the person accepts, then active. Only an active member has the role''s rights.';
comment on column public.member.created_at is
    'When the person was invited or, without an invitation, joined.';

-- sql/app/040_session.sql

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
comment on column public.session.id is 'Handle of the session that is no secret.';
comment on column public.session.user_id is 'Who signed in.';
comment on column public.session.token_hash is
    'Hash of the cookie''s token. Secret: never in the log.';
comment on column public.session.ip is 'Address the sign-in came from.';
comment on column public.session.user_agent is 'Browser the sign-in came from, in its own words.';
comment on column public.session.created_at is 'When the person signed in.';
comment on column public.session.last_seen_at is
    'When the session was last used. Changes on each request, so not audited.';
comment on column public.session.expires_at is 'From when on the session is no longer accepted.';
comment on column public.session.revoked_at is
    'When the session was ended before its time. Null: not revoked.';

-- sql/app/050_two_factor.sql

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

-- sql/app/060_api_key.sql

-- Keys of a person and keys of an org, told apart by org_id, in one table: they are looked up by
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
comment on column public.api_key.id is 'Handle of the key that is no secret.';
comment on column public.api_key.org_id is 'The org the key acts for. Null: a person''s own key.';
comment on column public.api_key.user_id is
    'Who made the key. A deleted person''s keys go with the account, an org''s too: nobody is left '
    'who answers for them.';
comment on column public.api_key.name is 'What its maker calls it.';
comment on column public.api_key.key_prefix is
    'First characters of the key, to recognise it by: wfb_… or kh_…, at most 16.';
comment on column public.api_key.key_hash is 'Hash of the key. Secret: never in the log.';
comment on column public.api_key.scopes is 'What the key may do. Empty: all that its maker may.';
comment on column public.api_key.last_used_at is
    'When the key was last used. Changes on each call, so not audited.';
comment on column public.api_key.expires_at is
    'From when on the key is no longer accepted. Null: never runs out.';
comment on column public.api_key.revoked_at is 'When the key was revoked. Null: not revoked.';
comment on column public.api_key.created_at is 'When the key was made.';

-- sql/app/070_workflow.sql

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

-- sql/app/080_workflow_execution.sql

-- One run of a workflow. No foreign keys: a run outlives the workflow, the key and the people
-- behind it,
-- and must still say which of them it was.

create table public.workflow_execution (
    id uuid primary key default gen_random_uuid(),
    workflow_id uuid not null,
    org_id text,
    user_id text,
    api_key_id text,
    status text not null default 'running'
        check (status in ('pending', 'running', 'succeeded', 'failed', 'canceled')),
    error text,
    triggered_by_credential_type text
        check (
            triggered_by_credential_type in
            ('webhook_key', 'org_api_key', 'oauth', 'session', 'internal')
        ),
    triggered_by_credential_label text,
    executed_workflow_hash text check (executed_workflow_hash ~ '^[0-9a-f]{64}$'),
    started_at timestamptz not null default now(),
    finished_at timestamptz,
    check (finished_at >= started_at)
);

create index workflow_execution_workflow_idx on public.workflow_execution (workflow_id, started_at);
create index workflow_execution_org_idx on public.workflow_execution (org_id, started_at);
create index workflow_execution_hash_idx on public.workflow_execution (executed_workflow_hash);

comment on table public.workflow_execution is
    'A run of a workflow, with the credential and the definition behind it. Not in the audit trail '
    'itself: it is a record already.';
comment on column public.workflow_execution.id is
    'Made by the database if the application gives none.';
comment on column public.workflow_execution.workflow_id is
    'The workflow that ran; it may be deleted since.';
comment on column public.workflow_execution.org_id is
    'The org it ran for; it may be deleted since.';
comment on column public.workflow_execution.user_id is
    'Who started it, if a person did; the account may be deleted since.';
comment on column public.workflow_execution.api_key_id is
    'The key that started it, if one did; it may be deleted since.';
comment on column public.workflow_execution.status is
    'pending, running, succeeded, failed or canceled.';
comment on column public.workflow_execution.error is 'Why it failed, in words. Null: it did not.';
comment on column public.workflow_execution.triggered_by_credential_type is
    'What kind of credential started it: webhook_key, org_api_key, oauth, session or internal.';
comment on column public.workflow_execution.triggered_by_credential_label is
    'That credential''s handle, which is no secret, such as kh_9f2….';
comment on column public.workflow_execution.executed_workflow_hash is
    'Hash of the definition that ran: lower-case hex SHA-256, equal to content_hash of its version '
    'in the history.';
comment on column public.workflow_execution.started_at is 'When the run began.';
comment on column public.workflow_execution.finished_at is 'When the run ended. Null: it has not.';

-- sql/app/090_subscription.sql

-- What an org pays for, as the payment provider's webhook last reported it.

create table public.subscription (
    org_id text primary key references public.organization on delete cascade,
    plan text not null default 'free' check (plan <> ''),
    status text not null default 'active'
        check (
            status in
            ('incomplete', 'trialing', 'active', 'past_due', 'unpaid', 'paused', 'canceled')
        ),
    cancel_at_period_end boolean not null default false,
    current_period_end timestamptz,
    provider text,
    provider_customer_id text,
    provider_subscription_id text unique,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

comment on table public.subscription is
    'An org''s subscription. Audited: subscription.created, subscription.plan_changed, '
    'subscription.cancel_scheduled, subscription.cancel_withdrawn, subscription.canceled, '
    'subscription.reactivated, subscription.updated, subscription.deleted. Before the provider '
    'answers no row changes: subscription.checkout_started, subscription.change_requested and '
    'subscription.cancel_requested come from pgaudit_wf.record_event.';
comment on column public.subscription.org_id is 'The org that pays; it has one subscription.';
comment on column public.subscription.plan is 'The plan in force, not the one asked for.';
comment on column public.subscription.status is
    'The provider''s word for where it stands: incomplete, trialing, active, past_due, unpaid, '
    'paused or canceled.';
comment on column public.subscription.cancel_at_period_end is
    'It still runs, and ends at current_period_end.';
comment on column public.subscription.current_period_end is
    'Until when it is paid for. Null: no period, as on the free plan.';
comment on column public.subscription.provider is
    'Who takes the payments. Null: nobody, as on the free plan.';
comment on column public.subscription.provider_customer_id is 'The org''s id at the provider.';
comment on column public.subscription.provider_subscription_id is
    'The subscription''s id at the provider.';
comment on column public.subscription.created_at is 'When the org first subscribed.';
comment on column public.subscription.updated_at is
    'When the application last saved the row. Not audited.';

-- sql/app/100_wallet.sql

-- Wallets that an org pays and is paid with: its own, and agentic ones that workflows sign for by
-- an HMAC secret.

create table public.wallet (
    id text primary key default gen_random_uuid()::text check (id <> ''),
    org_id text not null references public.organization on delete cascade,
    kind text not null default 'org' check (kind in ('org', 'agentic')),
    address text not null,
    hmac_secret text,
    key_version int not null default 1 check (key_version > 0),
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

-- sql/app/200_action_rule.sql

-- What a change of a reference table means, as rules: for each table the first that holds, by
-- position, names the event.
-- The gravest meaning stands first, since one changed row is one event: revoking and renaming a key
-- at once is a revocation.

insert into pgaudit_wf.action_rule (resource_type, op, condition, action, position) values
    ('organization', 'insert', null, 'org.created', 10),
    ('organization', 'update',
        'old.deactivated_at is null and new.deactivated_at is not null',
        'org.deactivated', 10),
    ('organization', 'update',
        'old.deactivated_at is not null and new.deactivated_at is null',
        'org.reactivated', 20),
    ('organization', 'update', null, 'org.updated', 30),
    ('organization', 'delete', null, 'org.deleted', 10),

    ('user', 'insert', null, 'account.created', 10),
    ('user', 'update',
        'old.deactivated_at is null and new.deactivated_at is not null',
        'account.deactivated', 10),
    ('user', 'update',
        'old.deactivated_at is not null and new.deactivated_at is null',
        'account.reactivated', 20),
    -- The row does not tell a reset by e-mail from a change by someone signed in: the application's
    -- reason does.
    ('user', 'update',
        'old.password_hash is distinct from new.password_hash'
        ' and current_setting(''app.reason'', true) ilike ''%reset%''',
        'password.reset', 30),
    ('user', 'update',
        'old.password_hash is distinct from new.password_hash',
        'password.changed', 40),
    ('user', 'update', 'old.email is distinct from new.email', 'email.changed', 50),
    ('user', 'update', null, 'account.updated', 60),
    ('user', 'delete', null, 'account.deleted', 10),

    ('member', 'insert', 'new.status = ''invited''', 'member.invited', 10),
    ('member', 'insert', null, 'member.joined', 20),
    ('member', 'update', 'old.status = ''invited'' and new.status = ''active''', 'member.joined', 10),
    ('member', 'update', 'old.role is distinct from new.role', 'member.role_changed', 20),
    ('member', 'delete', null, 'member.removed', 10),

    ('session', 'insert', null, 'session.created', 10),
    ('session', 'update',
        'old.revoked_at is null and new.revoked_at is not null',
        'session.revoked', 10),
    ('session', 'update', null, 'session.updated', 20),
    -- Clearing away what had ended anyway takes nothing from anybody.
    ('session', 'delete', 'old.revoked_at is not null', 'session.deleted', 10),
    ('session', 'delete', 'old.expires_at <= now()', 'session.expired', 20),
    ('session', 'delete', null, 'session.revoked', 30),

    ('two_factor', 'insert', 'new.enabled_at is not null', 'totp.enrolled', 10),
    ('two_factor', 'insert', null, 'totp.enrollment_started', 20),
    ('two_factor', 'update',
        'old.enabled_at is not null and new.enabled_at is null',
        'totp.disabled', 10),
    ('two_factor', 'update',
        'old.enabled_at is null and new.enabled_at is not null',
        'totp.enrolled', 20),
    -- Another secret is another authenticator.
    ('two_factor', 'update',
        'new.enabled_at is not null and old.secret is distinct from new.secret',
        'totp.enrolled', 30),
    ('two_factor', 'update',
        'new.backup_codes <@ old.backup_codes'
        ' and cardinality(new.backup_codes) < cardinality(old.backup_codes)',
        'backup_codes.used', 40),
    ('two_factor', 'update',
        'old.backup_codes is distinct from new.backup_codes',
        'backup_codes.regenerated', 50),
    ('two_factor', 'update', null, 'totp.updated', 60),
    ('two_factor', 'delete', 'old.enabled_at is not null', 'totp.disabled', 10),
    ('two_factor', 'delete', null, 'totp.enrollment_canceled', 20),

    ('api_key', 'insert', 'new.org_id is null', 'api_key.created', 10),
    ('api_key', 'insert', null, 'org_api_key.created', 20),
    ('api_key', 'update',
        'old.revoked_at is null and new.revoked_at is not null and new.org_id is null',
        'api_key.revoked', 10),
    ('api_key', 'update',
        'old.revoked_at is null and new.revoked_at is not null',
        'org_api_key.revoked', 20),
    ('api_key', 'update',
        'old.revoked_at is not null and new.revoked_at is null and new.org_id is null',
        'api_key.reinstated', 30),
    ('api_key', 'update',
        'old.revoked_at is not null and new.revoked_at is null',
        'org_api_key.reinstated', 40),
    ('api_key', 'update',
        'old.key_hash is distinct from new.key_hash and new.org_id is null',
        'api_key.rotated', 50),
    ('api_key', 'update', 'old.key_hash is distinct from new.key_hash', 'org_api_key.rotated', 60),
    ('api_key', 'update',
        'old.name is distinct from new.name and new.org_id is null',
        'api_key.renamed', 70),
    ('api_key', 'update', 'old.name is distinct from new.name', 'org_api_key.renamed', 80),
    ('api_key', 'update', 'new.org_id is null', 'api_key.updated', 90),
    ('api_key', 'update', null, 'org_api_key.updated', 100),
    -- Its revocation is in the log already: a second one would be a false alarm.
    ('api_key', 'delete', 'old.revoked_at is not null and old.org_id is null', 'api_key.deleted', 10),
    ('api_key', 'delete', 'old.revoked_at is not null', 'org_api_key.deleted', 20),
    ('api_key', 'delete', 'old.org_id is null', 'api_key.revoked', 30),
    ('api_key', 'delete', null, 'org_api_key.revoked', 40),

    ('workflow', 'update', 'new.listed and not old.listed', 'workflow.listed', 10),
    ('workflow', 'update', 'old.listed and not new.listed', 'workflow.unlisted', 20),
    ('workflow', 'update', 'new.enabled and not old.enabled', 'workflow.enabled', 30),
    ('workflow', 'update', 'old.enabled and not new.enabled', 'workflow.disabled', 40),
    ('workflow', 'update',
        '(old.listed_slug, old.listed_at, old.listing_description, old.listing_category,'
        ' old.listing_price, old.listing_currency)'
        ' is distinct from '
        '(new.listed_slug, new.listed_at, new.listing_description, new.listing_category,'
        ' new.listing_price, new.listing_currency)',
        'workflow.listing_updated', 50),

    ('subscription', 'update',
        'new.status = ''canceled'' and old.status <> ''canceled''',
        'subscription.canceled', 10),
    ('subscription', 'update',
        'old.status = ''canceled'' and new.status <> ''canceled''',
        'subscription.reactivated', 20),
    ('subscription', 'update', 'old.plan is distinct from new.plan', 'subscription.plan_changed', 30),
    ('subscription', 'update',
        'new.cancel_at_period_end and not old.cancel_at_period_end',
        'subscription.cancel_scheduled', 40),
    ('subscription', 'update',
        'old.cancel_at_period_end and not new.cancel_at_period_end',
        'subscription.cancel_withdrawn', 50),
    ('subscription', 'delete', 'old.status <> ''canceled''', 'subscription.canceled', 10),

    ('wallet', 'insert', 'new.kind = ''agentic''', 'agentic_wallet.created', 10),
    ('wallet', 'insert', null, 'org_wallet.created', 20),
    ('wallet', 'update',
        'new.kind = ''agentic'' and (old.hmac_secret is distinct from new.hmac_secret'
        ' or old.key_version <> new.key_version)',
        'agentic_wallet.hmac_rotated', 10),
    ('wallet', 'update', 'new.kind = ''agentic''', 'agentic_wallet.updated', 20),
    ('wallet', 'update', null, 'org_wallet.updated', 30),
    ('wallet', 'delete', 'old.kind = ''agentic''', 'agentic_wallet.deleted', 10),
    ('wallet', 'delete', null, 'org_wallet.deleted', 20);

-- sql/app/210_attach.sql

-- What is audited of the reference application, and how.
-- `redact` lists each column from which someone could sign in or sign; `ignore` what changes on
-- each request.

select pgaudit_wf.attach(
    'public.organization', resource_type => 'organization', org_column => 'id', label_column => 'name'
);
select pgaudit_wf.attach(
    'public.app_user', resource_type => 'user', label_column => 'email', redact => '{password_hash}'
);
select pgaudit_wf.attach('public.member', org_column => 'org_id', ignore => '{}');
select pgaudit_wf.attach('public.session', ignore => '{last_seen_at}', redact => '{token_hash}');
select pgaudit_wf.attach('public.two_factor', ignore => '{}', redact => '{secret,backup_codes}');
select pgaudit_wf.attach(
    'public.api_key', org_column => 'org_id', label_column => 'key_prefix',
    ignore => '{last_used_at}', redact => '{key_hash}'
);
select pgaudit_wf.attach_workflow(
    'public.workflow', org_column => 'org_id',
    listing_columns => '{listed_slug,listed_at,listing_description,listing_category,listing_price,listing_currency}'
);
select pgaudit_wf.attach_execution('public.workflow_execution');
select pgaudit_wf.attach('public.subscription', org_column => 'org_id', label_column => 'plan');
select pgaudit_wf.attach(
    'public.wallet', org_column => 'org_id', label_column => 'address', redact => '{hmac_secret}'
);

-- sql/app/220_directory.sql

-- Who an actor is and what he may read, looked up in the reference application's own tables.

create or replace view pgaudit_wf.actor_directory as
select app_user.id as actor_id, app_user.name, app_user.email
from public.app_user;

-- The trail is opened by this view: an invitation or a switched-off account must not be enough.
create or replace view pgaudit_wf.org_member as
select member.org_id, member.user_id as actor_id, member.role
from public.member
join public.app_user on app_user.id = member.user_id
where member.status = 'active' and app_user.deactivated_at is null;

-- A key's prefix is what people know it by, and is no secret.
create or replace view pgaudit_wf.credential_directory as
select
    api_key.id as credential_id,
    case when api_key.org_id is null then 'webhook_key' else 'org_api_key' end as credential_type,
    api_key.key_prefix as label
from public.api_key;

-- Where event triggers can be had, CREATE VIEW has done it already.
select pgaudit_wf.grant_directory();

-- sql/app/230_limit_condition.sql

-- What takes a place under pgaudit_wf.org_limit, where not every row does.

insert into pgaudit_wf.limit_condition (resource_type, condition) values
    ('api_key', 'revoked_at is null');

-- end of what is generated

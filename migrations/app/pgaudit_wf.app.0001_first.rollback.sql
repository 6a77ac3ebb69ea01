-- generated from sql/ by make migration: edit sql/, not this

delete from pgaudit_wf.limit_condition as t
using (
values
    ('api_key', 'revoked_at is null')
) as v (resource_type, condition)
where t.resource_type is not distinct from v.resource_type
  and t.condition is not distinct from v.condition;

create or replace view pgaudit_wf.credential_directory as
select
    null::text as credential_id,
    null::text as credential_type,
    null::text as label
where false;

create or replace view pgaudit_wf.org_member as
select
    null::text as org_id,
    null::text as actor_id,
    null::text as role
where false;

create or replace view pgaudit_wf.actor_directory as
select
    null::text as actor_id,
    null::text as name,
    null::text as email
where false;

select pgaudit_wf.detach('public.wallet');

select pgaudit_wf.detach('public.subscription');

select pgaudit_wf.detach_execution('public.workflow_execution');

select pgaudit_wf.detach_workflow('public.workflow');

select pgaudit_wf.detach('public.api_key');

select pgaudit_wf.detach('public.two_factor');

select pgaudit_wf.detach('public.session');

select pgaudit_wf.detach('public.member');

select pgaudit_wf.detach('public.app_user');

select pgaudit_wf.detach('public.organization');

delete from pgaudit_wf.action_rule as t
using (
values
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
    ('wallet', 'delete', null, 'org_wallet.deleted', 20)
) as v (resource_type, op, condition, action, position)
where t.resource_type is not distinct from v.resource_type
  and t.op is not distinct from v.op
  and t.condition is not distinct from v.condition
  and t.action is not distinct from v.action
  and t.position is not distinct from v.position;

drop table
  public.wallet,
  public.subscription,
  public.workflow_execution,
  public.workflow,
  public.api_key,
  public.two_factor,
  public.session,
  public.member,
  public.app_user,
  public.organization;

-- Removes the reference application, in any version: its tables, and what it registered about them in the core.

delete from pgaudit_wf.limit_condition where resource_type = 'api_key';

-- The directories as they are in the core: empty.
create or replace view pgaudit_wf.api_key_directory as
select
    null::text as api_key_id,
    null::text as org_id,
    null::text as owner_id,
    null::text as label,
    null::text as prefix,
    null::text as key_hash,
    null::timestamptz as created_at,
    null::timestamptz as expires_at,
    null::timestamptz as last_used_at,
    null::timestamptz as revoked_at
where false;

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

-- A table may have been detached or dropped by hand.
select pgaudit_wf.detach_execution(target) from pgaudit_wf.execution_attachment where target = to_regclass('public.workflow_execution');

select pgaudit_wf.detach(target) from pgaudit_wf.attachment
where target in (
    to_regclass('public.wallet'), to_regclass('public.subscription'), to_regclass('public.workflow'), to_regclass('public.api_key'),
    to_regclass('public.two_factor'), to_regclass('public.session'), to_regclass('public.member'), to_regclass('public.app_user'),
    to_regclass('public.organization')
);

delete from pgaudit_wf.action_rule
where resource_type in ('organization', 'user', 'member', 'session', 'two_factor', 'api_key', 'workflow', 'subscription', 'wallet');

-- In one statement, since they refer to each other.
drop table if exists
    public.wallet, public.subscription, public.workflow_execution, public.workflow, public.api_key, public.two_factor, public.session,
    public.member, public.app_user, public.organization;

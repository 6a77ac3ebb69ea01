-- Who an actor is and what an actor may read, looked up in the reference application's own tables.

create or replace view pgaudit_wf.actor_directory as
select app_user.id as actor_id, app_user.name, app_user.email
from public.app_user;

-- The trail is opened by this view: an invitation or a switched-off account must not be enough.
create or replace view pgaudit_wf.org_member as
select member.org_id, member.user_id as actor_id, member.role
from public.member
join public.app_user on app_user.id = member.user_id
where member.status = 'active' and app_user.deactivated_at is null;

-- A key's prefix is what people know it by, and is not secret.
create or replace view pgaudit_wf.credential_directory as
select
    api_key.id as credential_id,
    case when api_key.org_id is null then 'webhook_key' else 'org_api_key' end as credential_type,
    api_key.key_prefix as label
from public.api_key;

-- What is watched. Reports of leaked keys name a key by its prefix or by its hash.
create or replace view pgaudit_wf.api_key_directory as
select
    api_key.id as api_key_id,
    api_key.org_id,
    api_key.user_id as owner_id,
    api_key.key_prefix as label,
    api_key.key_prefix as prefix,
    api_key.key_hash,
    api_key.created_at,
    api_key.expires_at,
    api_key.last_used_at,
    api_key.revoked_at
from public.api_key;

-- Where event triggers can be had, CREATE VIEW has done it already.
select pgaudit_wf.grant_directory();

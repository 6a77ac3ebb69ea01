-- API keys as the log knows them, including revoked and deleted ones.

create view pgaudit_wf.api_key_activity with (security_invoker = true) as
select
    l.resource_id as api_key_id,
    (array_agg(l.org_id order by l.occurred_at desc, l.id desc) filter (where l.org_id is not null))[1] as org_id,
    (array_agg(l.metadata ->> 'label' order by l.occurred_at desc, l.id desc) filter (where l.metadata ? 'label'))[1] as label,
    case
        when bool_or(l.action like '%.deleted' or l.diff -> 0 ->> 'op' = 'remove') then 'deleted'
        when bool_or(l.action like '%.revoked') then 'revoked'
        else 'active'
    end as status,
    min(l.occurred_at) filter (where l.action like '%.created') as created_at,
    (array_agg(l.actor_id order by l.occurred_at, l.id) filter (where l.action like '%.created'))[1] as created_by,
    min(l.occurred_at) filter (where l.action like '%.revoked') as revoked_at,
    (array_agg(l.actor_id order by l.occurred_at, l.id) filter (where l.action like '%.revoked'))[1] as revoked_by,
    max(l.occurred_at) filter (where l.diff -> 0 ->> 'op' = 'remove') as deleted_at,
    count(*) as events,
    max(l.occurred_at) as last_event_at
from pgaudit_wf.security_audit_log as l
where l.resource_type = 'api_key' and l.outcome = 'succeeded'
group by l.resource_id;
comment on view pgaudit_wf.api_key_activity is
    'Every API key in the log (resource type api_key), including revoked and deleted ones: who created it, who revoked it, and when. '
    'The reader role sees its organization''s.';
comment on column pgaudit_wf.api_key_activity.api_key_id is 'Id of the key.';
comment on column pgaudit_wf.api_key_activity.org_id is 'Organization of the key; null for a user''s own key.';
comment on column pgaudit_wf.api_key_activity.label is 'Its name when it last changed.';
comment on column pgaudit_wf.api_key_activity.status is 'active, revoked or deleted.';
comment on column pgaudit_wf.api_key_activity.created_at is 'When it was created; null if before its table was attached.';
comment on column pgaudit_wf.api_key_activity.created_by is 'Actor who created it.';
comment on column pgaudit_wf.api_key_activity.revoked_at is 'When it was first revoked.';
comment on column pgaudit_wf.api_key_activity.revoked_by is 'Actor who revoked it.';
comment on column pgaudit_wf.api_key_activity.deleted_at is 'When its row was deleted.';
comment on column pgaudit_wf.api_key_activity.events is 'Number of events of the key.';
comment on column pgaudit_wf.api_key_activity.last_event_at is 'Time of the last one.';

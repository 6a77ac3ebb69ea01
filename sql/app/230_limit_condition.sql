-- What counts towards pgaudit_wf.org_limit, where not every row does.

insert into pgaudit_wf.limit_condition (resource_type, condition) values
    ('api_key', 'revoked_at is null');

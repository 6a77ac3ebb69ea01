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

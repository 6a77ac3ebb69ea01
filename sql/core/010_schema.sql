-- The schema and the two group roles.
--
-- How it hangs together: attach() (080) compiles a trigger function for a table (070) from its settings (060) and rules (050);
-- the trigger appends one row to security_audit_log (030), whose column defaults say who is asking (020). Everything after
-- that only reads the log: the reader cursor (110), the trail (130), row_as_of (140).

create schema pgaudit_wf;

comment on schema pgaudit_wf is
    'Security audit trail: attach(table) records every change of it in security_audit_log, in the same transaction. Start with the views attached and audit_trail_entry and the function doctor().';

-- Roles are shared by all databases of a server, so another database may have made them already, or be making them now; and a
-- managed server may not let us. grant_roles() in 190_grants.sql does the granting and can be run again once they exist.
do $$
declare
    role_name text;
begin
    foreach role_name in array array['pgaudit_wf_app', 'pgaudit_wf_reader'] loop
        if to_regrole(role_name) is null then
            begin
                execute format('create role %I nologin', role_name);
            exception
                when duplicate_object or unique_violation then
                    null;
                when insufficient_privilege then
                    raise notice 'role % was not created: % may not create roles', role_name, current_user
                        using hint = format('Have an administrator run "create role %I nologin", then run "select pgaudit_wf.grant_roles()".', role_name);
            end;
        end if;
    end loop;
end
$$;

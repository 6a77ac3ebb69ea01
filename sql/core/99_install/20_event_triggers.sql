-- The event triggers, which perhaps only the installing role may create: their functions still belong to the owner of our schema, and
-- those that are security definer run as that role.

reset role;

do $$
begin
    -- Before the application's own, and in this order: a new partition's triggers call functions that _after_ddl() has written.
    create event trigger pgaudit_wf_before_ddl on ddl_command_start when tag in ('ALTER TABLE', 'CREATE TABLE', 'CREATE SCHEMA')
        execute function pgaudit_wf._before_ddl();
    create event trigger pgaudit_wf_after_ddl on ddl_command_end
        when tag in ('ALTER TABLE', 'ALTER TYPE', 'CREATE TABLE', 'CREATE SCHEMA', 'CREATE CAST')
        execute function pgaudit_wf._after_ddl();
    create event trigger pgaudit_wf_after_other_ddl on ddl_command_end
        when tag in ('ALTER TYPE', 'ALTER DOMAIN', 'ALTER FUNCTION', 'ALTER PROCEDURE', 'ALTER ROUTINE', 'ALTER SCHEMA', 'ALTER OPERATOR',
            'ALTER COLLATION', 'DROP TYPE', 'DROP DOMAIN', 'DROP FUNCTION', 'DROP ROUTINE', 'DROP SCHEMA', 'DROP OPERATOR', 'DROP OWNED',
            'DROP COLLATION', 'DROP EXTENSION', 'DROP CAST')
        execute function pgaudit_wf._after_other_ddl();
    create event trigger pgaudit_wf_after_drop on sql_drop execute function pgaudit_wf._after_drop();
    create event trigger pgaudit_wf_follow_as_author on ddl_command_end
        when tag in ('ALTER TABLE', 'CREATE TABLE', 'CREATE SCHEMA', 'CREATE TRIGGER', 'CREATE VIEW')
        execute function pgaudit_wf._follow_as_author();
    create event trigger pgaudit_wf_note_altered on ddl_command_end
        when tag in ('ALTER TABLE', 'CREATE TRIGGER', 'ALTER TRIGGER', 'CREATE FUNCTION', 'ALTER FUNCTION')
        execute function pgaudit_wf._note_altered();
    create event trigger pgaudit_wf_note_rewrite on table_rewrite execute function pgaudit_wf._note_rewrite();
    create event trigger pgaudit_wf_refuse_detach on ddl_command_end when tag in ('ALTER TABLE')
        execute function pgaudit_wf._refuse_detach();
    create event trigger pgaudit_wf_refuse_drop on sql_drop when tag in ('DROP TABLE') execute function pgaudit_wf._refuse_drop();
    alter event trigger pgaudit_wf_before_ddl enable always;
    alter event trigger pgaudit_wf_after_ddl enable always;
    alter event trigger pgaudit_wf_after_other_ddl enable always;
    alter event trigger pgaudit_wf_after_drop enable always;
    alter event trigger pgaudit_wf_follow_as_author enable always;
    alter event trigger pgaudit_wf_note_altered enable always;
    alter event trigger pgaudit_wf_note_rewrite enable always;
    alter event trigger pgaudit_wf_refuse_detach enable always;
    alter event trigger pgaudit_wf_refuse_drop enable always;
    comment on event trigger pgaudit_wf_before_ddl is 'Lets a new owner of an attached table make partitions of it.';
    comment on event trigger pgaudit_wf_after_ddl is 'Rewrites the trigger functions of attached tables after DDL that concerns them.';
    comment on event trigger pgaudit_wf_after_other_ddl is
        'Warns of rules that no longer compile after DDL on types, functions and schemas.';
    comment on event trigger pgaudit_wf_after_drop is
        'Forgets attached tables that are dropped; rewrites the functions of those that lose a column by CASCADE.';
    comment on event trigger pgaudit_wf_follow_as_author is
        'Keeps the triggers on attached tables and their partitions what they must be; lets our views read the columns that they name.';
    comment on event trigger pgaudit_wf_note_altered is
        'Records in the trail that an attached table is no longer recorded, or again, and that a function of ours was replaced.';
    comment on event trigger pgaudit_wf_note_rewrite is
        'Records in the trail that DDL computed new values for the rows of an attached table.';
    comment on event trigger pgaudit_wf_refuse_detach is 'Keeps partitions of the log from being detached or renamed.';
    comment on event trigger pgaudit_wf_refuse_drop is 'Keeps the tables of the audit trail from being dropped by anything but prune().';
exception
    when insufficient_privilege then
        raise notice '% is not allowed to create event triggers: attach() compiles the generic form, which is slower but needs none, '
            'and nothing keeps the owner from dropping a partition of the log', current_user;
end
$$;

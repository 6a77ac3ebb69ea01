-- Last of all, what doctor() compares with. As the owner of the schema: the installing role may have no rights in it.

do $$
begin
    execute format('set role %s', pgaudit_wf._schema_owner()::regrole);
    perform pgaudit_wf._write_blueprint();
    reset role;
end
$$;

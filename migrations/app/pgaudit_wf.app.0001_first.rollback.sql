-- generated from sql/ by make migration: edit sql/, not this

drop view pgaudit_wf.org_member;
drop view pgaudit_wf.actor_directory;
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

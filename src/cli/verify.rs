//! `argon verify`: proves that a branch's history is whole, or names what is not.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  argon verify shop/main")]
pub(crate) struct Args {}
pub(crate) async fn run(_: Args, _: super::Context, _: super::Output) -> crate::fault::Result<super::Exit> {
    Err(crate::fault::Fault::rejected("verify is being merged"))
}
